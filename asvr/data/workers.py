"""Processes that read data: is there room for what they hand over, and what happens where one dies or is stuck.

A worker hands tensors over in shared memory (``/dev/shm``), of which a container has 64 MiB unless it was given more.
Where it is full, the worker's tensors are lost, or the worker is, and the training process would wait for ever.
"""

import mmap
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path

from mmengine.dist import get_world_size
from torch import Tensor
from torch.utils.data import DataLoader

from asvr.base.compat import end_workers
from asvr.base.disk import in_bytes
from asvr.base.log import logger

SHARED = Path("/dev/shm")
TIMEOUT = 600.0  # seconds without an item
OTHER_FILES = 256  # that a process has open besides


class WorkerFailed(ValueError):
    """A worker died, or handed nothing over for too long."""


def free_shared_memory() -> int | None:
    """Bytes; None on a system that has it elsewhere."""
    return shutil.disk_usage(SHARED).free if SHARED.is_dir() else None


def tensors_in(value) -> Iterator[Tensor]:
    """Those of an item of a DataLoader."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif is_dataclass(value):
        yield from tensors_in([getattr(value, field.name) for field in fields(value)])


def shared_bytes(value) -> int:
    """What it takes in shared memory: each tensor whole pages."""
    return sum(-(-tensor.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE for tensor in tensors_in(value))


def require_room_for_workers(value, *, workers: int, ahead: int, what: str, share: float = 1.0, files: int = 1) -> None:
    """See that what workers hand over fits in shared memory. value: what one hands over at a time, or a part of that;
    share: how many such parts are the whole; files: tensors in the whole. ahead: wholes that each keeps ready. what:
    the whole, for messages.

    Raises ``ValueError`` where shared memory is too small, or the number of files that a process may open, of which
    each tensor is one.
    """
    wholes = workers * ahead + 1  # one is in use
    needed, free = int(shared_bytes(value) * share) * wholes * _processes_here(), free_shared_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"{SHARED} has {in_bytes(free)} free, and {what}, by num_workers={workers}, need about {in_bytes(needed)} "
            f"there: give the container more (docker run --shm-size={-(-needed // 2**20) + 64}m), or set fewer "
            "num_workers (0 needs none)"
        )
    _allow_files(files * wholes + OTHER_FILES, workers)


def _processes_here() -> int:
    """Processes of the run that share this machine's memory."""
    if get_world_size() == 1:  # SLURM's variable is there in an interactive job too
        return 1
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)


def _allow_files(needed: int, workers: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ValueError(
            f"a process may open {hard:,} files, and the tensors that num_workers={workers} hand over are about "
            f"{needed:,}: raise the limit (ulimit -n {needed}), or set fewer num_workers or a larger micro_batch"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    logger.info("a process may open %d files now, %d before (ulimit -n): num_workers=%d", needed, soft, workers)


@contextmanager
def naming_workers(loader: DataLoader) -> Iterator[None]:
    """Raise `WorkerFailed` for torch's error about a worker that died or is stuck, which comes wherever the process is
    then. What a worker itself raises stays."""
    try:
        yield
    except RuntimeError as error:
        head = str(error).partition("\n")[0]
        stuck = head.startswith("DataLoader timed out")
        if not stuck and not head.startswith("DataLoader worker"):
            raise
        free = free_shared_memory()
        room = "" if free is None else f" ({SHARED} has {in_bytes(free)} free)"
        count = f"num_workers={loader.num_workers}"
        if stuck:
            raise WorkerFailed(
                f"no process of {count} handed anything over for {loader.timeout:.0f} s (data.worker_timeout): one is "
                f"stuck, or the disk is{room}; num_workers=0 shows where"
            ) from error
        raise WorkerFailed(
            f"a process of {count} died, likely for want of memory{room}: set fewer num_workers, 0 shows where. torch "
            f"says: {' '.join(str(error).split())}"
        ) from error


def items_of(loader: DataLoader) -> Iterator:
    """As ``iter(loader)``, with the errors of `naming_workers`. No process is left behind it."""
    batches = iter(loader)
    try:
        while True:
            try:
                with naming_workers(loader):
                    item = next(batches)
            except StopIteration:
                return
            yield item
    finally:
        end_workers(batches)
