"""Checks for the worker processes that read data: shared memory, and workers that die or hang.

A worker passes tensors through shared memory (``/dev/shm``). A container has 64 MiB of it unless it was given more. If
it is full, the tensors or the worker are lost, and the training process would wait forever.
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
OTHER_FILES = 256  # other open files of a process


class WorkerFailed(ValueError):
    """A worker died, or sent nothing for too long."""


def free_shared_memory() -> int | None:
    """The free bytes of ``/dev/shm``; None on a system without it."""
    return shutil.disk_usage(SHARED).free if SHARED.is_dir() else None


def tensors_in(value) -> Iterator[Tensor]:
    """The tensors in an item of a DataLoader."""
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
    """The bytes that a value takes in shared memory. Each tensor takes full pages."""
    return sum(-(-tensor.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE for tensor in tensors_in(value))


def require_room_for_workers(value, *, workers: int, ahead: int, what: str, share: float = 1.0, files: int = 1) -> None:
    """Check that the items of all workers fit into shared memory.

    value: an item that a worker sends, or a part of it. share: the number of such parts in an item. files: the tensors
    in an item. ahead: the items that each worker keeps ready. what: the name of an item, for messages.

    Raises ``ValueError`` if shared memory is too small, or if a process may not open enough files: each tensor takes
    one.
    """
    wholes = workers * ahead + 1  # one is in use
    needed, free = int(shared_bytes(value) * share) * wholes * _processes_here(), free_shared_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"{SHARED} has {in_bytes(free)} free, but {what} need about {in_bytes(needed)} there with "
            f"num_workers={workers}: give the container more (docker run --shm-size={-(-needed // 2**20) + 64}m), or "
            "lower num_workers (0 needs none)"
        )
    _allow_files(files * wholes + OTHER_FILES, workers)


def _processes_here() -> int:
    """The number of processes of the run on this machine."""
    if get_world_size() == 1:  # SLURM sets its variable also in interactive jobs
        return 1
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)


def _allow_files(needed: int, workers: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ValueError(
            f"a process may open {hard:,} files, but the tensors of num_workers={workers} need about {needed:,}: raise "
            f"the limit (ulimit -n {needed}), lower num_workers, or set a larger micro_batch"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    logger.info("raised the limit of open files (ulimit -n) to %d for num_workers=%d, from %d", needed, workers, soft)


@contextmanager
def naming_workers(loader: DataLoader) -> Iterator[None]:
    """Turn torch's error about a dead or stuck worker into `WorkerFailed`. Errors that a worker raises itself stay.

    torch raises its error at any line of this process."""
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
                f"no worker ({count}) gave a sample for {loader.timeout:.0f} s (data.worker_timeout): a worker or the "
                f"disk hangs{room}; num_workers=0 shows where"
            ) from error
        raise WorkerFailed(
            f"a worker ({count}) died, likely because the memory was full{room}: lower num_workers; 0 shows the error. "
            f"torch says: {' '.join(str(error).split())}"
        ) from error


def items_of(loader: DataLoader) -> Iterator:
    """Like ``iter(loader)``, with the errors of `naming_workers`. All workers end with it."""
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
