"""Shares a training step among processes with DDP or FSDP2, which are model wrappers of MMEngine's Runner.

Each process has a part of the samples of the same optimisation step (`asvr.data.samplers.BatchSampler`). Before the
step, the processes exchange two counts on the CPU: the supervised tokens, by which losses are divided, and the
micro-batches. Gradients are then added up, not averaged, so the objective is the same as with one process.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from asvr.base import compat
from asvr.base.distributed import gather_numbers, get_world_size
from asvr.data.batch import Batch
from asvr.engine.half_weights import SplitAdamW
from asvr.engine.parallel_checks import check_precision, check_statistics
from asvr.models.hf import DTYPES, resolve_dtype
from asvr.models.trainable import kept_whole
from asvr.models.transforms import after_step, before_sharding, without_transforms
from asvr.registry import MODEL_WRAPPERS

FROZEN = ("shard", "replicate")


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a wrapper, or the model itself if it has no wrapper."""
    return model.module if is_model_wrapper(model) else model


@contextmanager
def answering(model: nn.Module) -> Iterator[nn.Module]:
    """The same as `full_params`, with the layers that a saved model has."""
    with full_params(model) as full, without_transforms(full):
        yield full


@contextmanager
def full_params(model: nn.Module) -> Iterator[nn.Module]:
    """The model without its wrapper, with all of its weights in this process.

    All processes must enter this block. Inside it, no process needs the others."""
    with model.full_params() if isinstance(model, FSDP2) else _as_it_is():
        yield unwrap(model)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


def all_reduce_counts(model: nn.Module, window: list[Batch]) -> tuple[list[Batch], dict[str, float]]:
    """Return the micro-batches of this process and the number of supervised tokens of all processes, by loss.

    Empty micro-batches are added, so that all processes have the same number. The collate function has counted the
    tokens, so no device is waited for."""
    counts = model.count_targets(window)
    everyone = gather_numbers([len(window), *counts.values()])
    most = max(int(numbers[0]) for numbers in everyone)
    totals = {name: sum(numbers[i] for numbers in everyone) for i, name in enumerate(counts, 1)}
    blank = Batch.blank(packed=window[0].segments is not None)
    return [*window, *[blank] * (most - len(window))], totals


def shared_step(wrapper: nn.Module, window: list[Batch], optim_wrapper, calls: Callable) -> dict[str, Tensor]:
    """Run `VLM.train_step` in all processes together.

    The logs are this process's share of the sums over all processes, with the same names in each. calls: gives, for a
    number of micro-batches, the function that runs the forward pass of each."""
    model = wrapper.module
    window, totals = all_reduce_counts(model, window)
    logs = model.train_step(window, optim_wrapper, totals=totals, calls=calls(len(window)))
    shapes = {"text": dict(correct=())} | {target.name: target.metrics for target in model.targets}
    for name, total in totals.items():
        if total and name not in logs:
            logs[name] = torch.zeros((), device=model.device)
            for metric, shape in shapes[name].items():
                logs[f"{metric}_{name}"] = torch.zeros(shape, device=model.device)
    return {name: logs[name] for name in sorted(logs)}


def _trained_half(module: nn.Module) -> list[str]:
    """The names of trained bfloat16 weights."""
    return [name for name, p in module.named_parameters() if p.requires_grad and p.dtype == torch.bfloat16]


@MODEL_WRAPPERS.register_module()
class DDP(DistributedDataParallel):
    """Data parallel: each process holds the whole model, and gradients are summed during the last backward pass.

    Gradients of bfloat16 weights are summed after it, in float32: torch would sum them in bfloat16.

    bucket_mb: the size, in MB, of the gradients that are sent together.
    """

    defers = False

    def __init__(self, *, module: nn.Module, device: torch.device, bucket_mb: float = 25.0):
        check_precision(module)
        check_statistics(module)
        self._half, self._bucket_bytes = _trained_half(module), bucket_mb * 2**20
        if len(self._half) == sum(p.requires_grad for p in module.parameters()):
            raise ValueError(
                "parallel.type='DDP': all trained weights are torch.bfloat16, and torch's DDP needs one of float32: "
                "use type='FSDP2', or dtype='float32'"
            )
        self._set_params_and_buffers_to_ignore_for_model(module, self._half)
        super().__init__(
            module.to(device),
            device_ids=[device] if device.type == "cuda" else None,
            bucket_cap_mb=bucket_mb,
            gradient_as_bucket_view=True,
            **compat.without_buffer_sync(),  # the same everywhere, see `parallel_checks`
        )
        self.register_comm_hook(None, _add_up)

    def train_step(self, window: list[Batch], optim_wrapper) -> dict[str, Tensor]:
        if self._half:
            optim_wrapper.before_step = self._add_half_up
        return shared_step(self, window, optim_wrapper, lambda count: [self._without_sync] * (count - 1) + [self])

    def _add_half_up(self, optimizer: SplitAdamW) -> None:
        optimizer.add_up(self._bucket_bytes)

    def _without_sync(self, *args) -> dict[str, Tensor]:
        with self.no_sync():
            return self(*args)


def _add_up(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Add gradients up. (DDP's own reduction would average them.)"""
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda done: done.value()[0])


@MODEL_WRAPPERS.register_module()
class FSDP2(nn.Module):
    """Fully sharded: each process holds a part of weights, gradients and optimiser states (torch's ``fully_shard``).

    Each block of the LLM is gathered when it runs. All other parts (embeddings, LM head, projector, heads, encoder,
    tokenizers) are gathered once in each micro-batch, even if a process has no samples that need them.

    param_dtype: the dtype in which blocks are gathered and compute; None: the weights' own.
    reduce_dtype: the dtype in which the gradients of blocks are added up; None: their own, or float32 for bfloat16
        weights.
    shard: the number of processes that share one copy of the model. It must divide the number of all processes. With
        the processes of one node, it is hybrid sharding. None: all processes share one copy.
    reshard_after_forward: free a block's gathered weights after its forward pass, and gather them again in the backward
        pass.
    reduce_each: add gradients up in every micro-batch, so that each process keeps only its part of them. False: only in
        the last micro-batch.
    cpu_offload: hold weights, gradients and optimiser states in the memory of the CPU, and update the weights there. A
        block is copied to the device when it runs. Weights that ``frozen='replicate'`` holds in full stay on the
        device.
    frozen: ``shard``, or ``replicate`` to hold all frozen weights in each process. Frozen convolutions in the layout
        channels last are always replicated. Trained ones lose this layout.
    """

    defers = True  # the LLM's weights are read after it is sharded
    choices = dict(param_dtype=(None, *DTYPES), reduce_dtype=(None, *DTYPES), frozen=FROZEN)  # allowed values of fields

    def __init__(
        self,
        *,
        module: nn.Module,
        device: torch.device,
        param_dtype: str | None = None,
        reduce_dtype: str | None = None,
        shard: int | None = None,
        reshard_after_forward: bool = True,
        reduce_each: bool = True,
        cpu_offload: bool = False,
        frozen: str = "shard",
    ):
        super().__init__()
        for name, value in dict(param_dtype=param_dtype, reduce_dtype=reduce_dtype, frozen=frozen).items():
            assert value in self.choices[name], f"parallel.{name}={value!r}: the config was not checked"
        check_precision(module)
        if cpu_offload and _trained_half(module):
            raise ValueError("parallel.cpu_offload: trained weights are torch.bfloat16: set dtype='float32'")
        check_statistics(module)
        blocks = getattr(module.llm, "blocks", None)
        if not blocks:
            raise ValueError(f"parallel: {type(module.llm).__name__} has no `blocks` to shard; use type='DDP'")
        self.module, self.reduce_each, self.reshard_after_forward = module, reduce_each, reshard_after_forward
        for parameter in module.parameters():
            if parameter.requires_grad and not parameter.is_contiguous():  # FSDP cannot shard channels last
                parameter.data = parameter.data.contiguous()
        packed = kept_whole(module)
        whole = [
            p
            for p in module.parameters()
            if not p.requires_grad and (frozen == "replicate" or not p.is_contiguous() or p in packed)
        ]
        _move(whole, device)
        if cpu_offload:
            module.compute_device = device
        before_sharding(module, whole, shard or get_world_size())
        common = dict(mesh=_mesh(device, shard), ignored_params=set(whole))
        if cpu_offload:
            common["offload_policy"] = CPUOffloadPolicy(pin_memory=device.type == "cuda")
        self._blocks = [block for block in blocks if any(p not in common["ignored_params"] for p in block.parameters())]
        for block in self._blocks:
            policy = _policy(block, param_dtype, reduce_dtype)
            fully_shard(block, mp_policy=policy, reshard_after_forward=reshard_after_forward, **common)
        for part in _apart(module, self._blocks):
            fully_shard(part, mp_policy=_policy(part), reshard_after_forward=False, **common)
            module.register_forward_pre_hook(partial(_unshard, part))  # its own forward pass may never run
        fully_shard(module, mp_policy=_policy(module), reshard_after_forward=False, **common)
        for unit in self._units():
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)  # a plain sum also works with gloo
        if hasattr(module.llm, "materialise"):
            module.llm.materialise(torch.device("cpu") if cpu_offload else device)
            _move([*whole, *module.buffers()], device)
        self._begun = self._stepped = False

    def train_step(self, window: list[Batch], optim_wrapper) -> dict[str, Tensor]:
        if not self._stepped:
            after_step(self.module)  # a checkpoint may have been loaded since the model was built
        self._begun = self._stepped = True
        return shared_step(self, window, optim_wrapper, self._calls)

    def _calls(self, count: int) -> Iterator[Callable]:
        for number in range(1, count + 1):
            self.module.set_requires_gradient_sync(self.reduce_each or number == count)
            self.module.set_requires_all_reduce(number == count)  # between replicas, once in each step
            yield self.module

    @contextmanager
    def full_params(self) -> Iterator[None]:
        """Gather all weights in this process, until the end of the block."""
        if not self._begun:  # FSDP treats the first module that runs as the root, so the whole model must run first
            with torch.no_grad():
                self.module(Batch.blank().to(self.module.device))
            self._begun = True
        after_step(self.module)  # other weights may have been loaded, such as averages
        for unit in self._units():
            unit.unshard()
        for block in self._blocks:
            block.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for block in self._blocks:
                block.set_reshard_after_forward(self.reshard_after_forward, recurse=False)
            for unit in self._units():
                unit.reshard()
            compat.forget_forward_passes(self.module)  # processes have made different numbers of forward passes

    def _units(self) -> list[FSDPModule]:
        return [module for module in self.module.modules() if isinstance(module, FSDPModule)]


def _move(tensors: list[Tensor], device: torch.device) -> None:
    """Move tensors in place, except those whose values are not read yet."""
    for tensor in tensors:
        if not tensor.is_meta:
            tensor.data = tensor.data.to(device)


def _policy(module: nn.Module, param_dtype: str | None = None, reduce_dtype: str | None = None) -> MixedPrecisionPolicy:
    if reduce_dtype is None and _trained_half(module):
        reduce_dtype = "float32"
    return MixedPrecisionPolicy(*(name and resolve_dtype(name) for name in (param_dtype, reduce_dtype)))


def _apart(model: nn.Module, blocks: list[nn.Module]) -> list[nn.Module]:
    """The components that need a unit of their own besides their blocks.

    FSDP adds gradients of one dtype up in a unit, so bfloat16 weights cannot be in one with float32 weights."""
    done = {p for block in blocks for p in block.parameters()}
    rest = {
        name: {p.dtype for p in part.parameters() if p.requires_grad and p not in done}
        for name, part in model.components().items()
    }
    if len(set().union(*rest.values())) < 2:
        return []
    if mixed := [name for name, dtypes in rest.items() if len(dtypes) > 1]:
        raise ValueError(
            f"parallel: {mixed[0]} trains weights of several dtypes outside of blocks, which FSDP2 cannot add up: give "
            "them one dtype, or use type='DDP'"
        )
    return [part for name, part in model.components().items() if rest[name] == {torch.bfloat16}]


def _unshard(part: FSDPModule, *_) -> None:
    part.unshard()


def _mesh(device: torch.device, shard: int | None):
    """The device mesh: all processes in one row, or replicas of ``shard`` processes each."""
    world = get_world_size()
    if shard is None or shard == world:
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (world // shard, shard), mesh_dim_names=("replicate", "shard"))
