"""Writes and reads checkpoints of sharded models, with ``torch.distributed.checkpoint``.

Each process writes the parts that it holds. Any number of processes can read them, also one without a process group.
``weights/`` and ``optimizer/`` hold safetensors files. The keys are the full names of parameters, and
``state.<parameter>.<moment>``. No file is pickled.
"""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from asvr.models.shards import local_shard, local_tensor

WEIGHTS, OPTIMIZER = "weights", "optimizer"
# The most bytes of one file. The safetensors writer keeps a file in memory and holds Python's lock while it builds it.
FILE_BYTES = 128 * 2**20
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def is_sharded(tensors: dict[str, Tensor]) -> bool:
    return any(isinstance(tensor, DTensor) for tensor in tensors.values())


def local_bytes(tensors: dict[str, Tensor]) -> int:
    """The number of bytes of these tensors that this process holds."""
    return sum(local_tensor(tensor).nbytes for tensor in tensors.values())


@contextmanager
def _first_failure() -> Iterator[None]:
    """Raise the error of the first process that failed, in place of torch's collection of all errors.

    That collection is not an ``Exception``."""
    try:
        yield
    except dcp.CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


# Writing --------------------------------------------------------------------------------------------------


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict]:
    """Return the optimiser's tensors, and its other settings by parameter, as plain values."""
    flat = get_optimizer_state_dict(model, optimizer, options=_FLAT)
    tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
    for key, value in tensors.items():
        if type(local := local_tensor(value)) is not Tensor:
            raise ValueError(
                f"the optimiser's {key} is a {type(local).__name__}, but only plain tensors of a sharded model can be "
                "saved: use another optimiser, or parallel.type='DDP'"
            )
    return tensors, {key: value for key, value in flat.items() if key not in tensors}


def write(folder: Path, tensors: dict[str, Tensor], group=None) -> list[Path]:
    """Write tensors into ``folder``. Every process of the group calls it. Returns the files of this process."""
    # Tensors that are not sharded may be channels last, which safetensors does not take.
    tensors = {key: value if isinstance(value, DTensor) else value.contiguous() for key, value in tensors.items()}
    writer = dcp.HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=_files(tensors), save_distributed=True)
    with _first_failure():
        dcp.save(tensors, storage_writer=writer, process_group=group)
    return sorted(folder.glob(f"shard-{dist.get_rank(group) + 1:05d}-*"))


def data_sha256(file: Path) -> str:
    """The SHA-256 of the data of a safetensors file, without its header, whose entries come in any order."""
    with open(file, "rb") as stream:
        stream.seek(int.from_bytes(stream.read(8), "little"), 1)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _files(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Tensor -> the number of its file, from 1. The numbers are the same on all processes."""
    found, file, filled = {}, 1, 0
    for key, tensor in tensors.items():
        size = tensor.nbytes
        if isinstance(tensor, DTensor):
            parts = [n for n, p in zip(tensor.device_mesh.shape, tensor.placements, strict=True) if p.is_shard()]
            for n in parts:
                size /= n
        if filled and filled + size > FILE_BYTES:
            file, filled = file + 1, 0
        found[key], filled = file, filled + size
    return found


# Reading --------------------------------------------------------------------------------------------------


def shapes(folder: Path) -> dict[str, torch.Size]:
    """The full shapes of the tensors in the files of ``folder``."""
    metadata = dcp.HuggingFaceStorageReader(str(folder)).read_metadata()
    return {key: value.size for key, value in metadata.state_dict_metadata.items()}


def read(folder: Path, into: dict[str, Tensor]) -> None:
    """Fill full or sharded tensors from the files of ``folder``. If they are sharded, every process calls it."""
    with _first_failure(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(into, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=not is_sharded(into))


def read_optimizer(folder: Path, settings: dict, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read the state of `optimizer_state` into an optimiser. Its model may be sharded in another way, or not at all."""
    tensors, _ = optimizer_state(model, optimizer)
    read(folder, tensors)
    set_optimizer_state_dict(model, optimizer, tensors | settings, options=_FLAT)
    for name, parameter in model.named_parameters():
        saved = {key: tensors.get(f"state.{name}.{key}") for key in optimizer.state.get(parameter, {})}
        _keep_dtypes(optimizer.state.get(parameter, {}), saved)


# From checkpoints that are not sharded ----------------------------------------------------------------------


def _is_like(value, parameter: Tensor) -> bool:
    """Whether a value of the state is a tensor of the parameter's shape. Others are plain numbers."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


def load_whole_optimizer(state: dict, optimizer: torch.optim.Optimizer) -> None:
    """Load the state dict of a model that was not sharded into an optimiser whose parameters may be sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        index: {
            key: local_shard(value, parameters[index]) if _is_like(value, parameters[index]) else value
            for key, value in values.items()
        }
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict(dict(state, state=moments))
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        if number in moments:
            _keep_dtypes(optimizer.state[parameter], moments[number])


def _keep_dtypes(own: dict, saved: dict) -> None:
    """Restore the dtypes of saved tensors. Torch casts them to the parameter's dtype, which breaks 8-bit codes."""
    for key, value in saved.items():
        if isinstance(value, Tensor) and key in own and own[key].dtype != value.dtype:
            own[key] = value.to(own[key].device, copy=True)
