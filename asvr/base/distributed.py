"""The processes of a run, and their communication on the CPU.

``torchrun`` and ``srun`` start several processes. Without them there is one, and nothing here waits.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from mmengine.dist import get_rank, get_world_size, is_main_process
from torch import distributed as dist

from asvr.base.launched import SLURM

# Timeout on the CPU: meanwhile the first process may compute the features of all images. A process that dies is noticed
# at once.
PATIENCE = timedelta(days=7)

_cpu_group = None


@contextmanager
def processes(parallel: dict[str, dict | None], device: str) -> Iterator[None]:
    """Join the processes that were started together with this one, until the end of the block.

    parallel: the ``parallel`` section of each stage that runs, by the name of the stage. device: ``runtime.device``.
    Raises ``ValueError`` if there are several processes and a stage has no ``parallel``, or one that does not fit their
    number.
    """
    global _cpu_group
    _read_slurm()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    _check(parallel, device, world)
    if dist.is_initialized() or not any(parallel.values()):
        yield
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        _, _, card = device.partition(":")  # a card is only named for a single process
        torch.cuda.set_device(int(card or os.environ.get("LOCAL_RANK", "0")))
    one = dict(store=dist.HashStore(), rank=0, world_size=1) if world == 1 else {}
    offloads = any((wrapper or {}).get("cpu_offload") for wrapper in parallel.values())
    on_cuda = "cuda:nccl,cpu:gloo" if offloads else "nccl"  # weights in the CPU's memory are added up there
    dist.init_process_group(on_cuda if cuda else "gloo", **one)
    _cpu_group = dist.new_group(backend="gloo", timeout=PATIENCE)
    failed = True
    try:
        yield
        failed = False
    finally:
        _cpu_group = None
        if world == 1 or not failed:  # after a failure the others may wait for this one; its exit ends them
            dist.destroy_process_group()


def _read_slurm() -> None:
    """If ``srun`` started this process, and not ``torchrun``, set the variables that ``torchrun`` sets."""
    if "RANK" in os.environ or int(os.environ.get(SLURM["WORLD_SIZE"], "1")) < 2:
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"srun has started {os.environ[SLURM['WORLD_SIZE']]} processes, but {' and '.join(missing)} is not set: "
            "export the first node's name and a free port, as examples/slurm/many_nodes.sbatch does"
        )
    os.environ.update({name: os.environ[theirs] for name, theirs in SLURM.items()})


def _check(parallel: dict[str, dict | None], device: str, world: int) -> None:
    for name, wrapper in parallel.items():
        if world > 1 and not wrapper:
            raise ValueError(
                f"WORLD_SIZE={world}, and stage {name} has no `parallel`: add parallel=dict(type='FSDP2') or "
                "parallel=dict(type='DDP') to the config (--cfg-options parallel.type=FSDP2 "
                "parallel.param_dtype=bfloat16), or start one process"
            )
        shard = (wrapper or {}).get("shard")
        if shard is not None and (shard < 1 or world % shard):
            raise ValueError(f"parallel.shard={shard} (stage {name}): expected a divisor of the {world} processes")
    if world > 1 and device.startswith("cuda:"):
        raise ValueError(
            f"runtime.device={device!r} with {world} processes: each uses the GPU of its LOCAL_RANK; "
            "set 'cuda' or 'auto'"
        )


def wait() -> None:
    """Wait until all processes have come here."""
    if dist.is_initialized():
        dist.barrier(group=_cpu_group)


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in the first process, then in the others, which find its files."""
    if not is_main_process():
        wait()
    yield
    if is_main_process():
        wait()


def from_main(value):
    """The ``value`` of the first process, in all processes."""
    if get_world_size() == 1:
        return value
    found = [value]
    dist.broadcast_object_list(found, src=0, group=_cpu_group)
    return found[0]


def gather(value) -> list:
    """The ``value`` of each process, in the order of ranks."""
    if get_world_size() == 1:
        return [value]
    found = [None] * get_world_size()
    dist.all_gather_object(found, value, group=_cpu_group)
    return found


def gather_numbers(own: list[float]) -> list[list[float]]:
    """The numbers of each process. All have the same count."""
    numbers = torch.tensor(own, dtype=torch.float64)
    found = [torch.empty_like(numbers) for _ in range(get_world_size())]
    dist.all_gather(found, numbers, group=_cpu_group)
    return [values.tolist() for values in found]


def sum_over_processes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The sums over processes of tensors with equal names and shapes, by one reduction on their device."""
    if get_world_size() == 1 or not tensors:
        return tensors
    flat = torch.cat([value.flatten() for value in tensors.values()])
    dist.all_reduce(flat)
    parts = flat.split([value.numel() for value in tensors.values()])
    return {key: part.view_as(value) for part, (key, value) in zip(parts, tensors.items(), strict=True)}


__all__ = [
    "from_main",
    "gather",
    "gather_numbers",
    "get_rank",
    "get_world_size",
    "is_main_process",
    "main_first",
    "processes",
    "sum_over_processes",
    "wait",
]
