"""Saves checkpoints while training goes on. Their content is copied to the CPU, and a thread writes the copy."""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch
from mmengine import dist
from torch import Tensor
from torch.distributed import new_group
from torch.distributed.tensor import DTensor

from asvr.base.distributed import PATIENCE
from asvr.engine import checkpoint
from asvr.engine.checkpoint_folder import PREFIX, prune

SOON = 60.0  # seconds


class Saver:
    """Writes the checkpoints of a stage, one at a time. The next one waits for the one before.

    Every process calls each method at the same step. folder: gets the folders ``step_N``. keep: the number of
    checkpoints to keep. asynchronous: False: training waits for the writing, which saves the memory of the copy.
    """

    def __init__(self, *, folder: Path, keep: int, asynchronous: bool):
        self.folder, self.keep = folder, keep
        self._pool = ThreadPoolExecutor(1, "checkpoint") if asynchronous else None
        self._running: Future | None = None
        self._groups: list | None = None

    def save(self, step: int, *, model, optimizer, state: dict, meta: dict) -> None:
        """Copy the state and start to write it. Training may go on when this returns.

        Raises the error of the save before, if there was one."""
        self.wait()
        folder, meta = self.folder / f"{PREFIX}{step:08d}", dict(meta, step=step)
        content = checkpoint.collect(model, optimizer, state)
        if self._pool is None:
            self._write(folder, content, meta, None)
            return
        if self._groups is None and dist.is_distributed():
            # One group for the thread and one for training, so that their messages cannot mix. Both are on the CPU.
            self._groups = [new_group(backend="gloo", timeout=PATIENCE) for _ in range(2)]
        if checkpoint.writes_here(content):
            arguments = folder, copied(content), meta, self._groups and self._groups[0]
            self._running = self._pool.submit(self._write, *arguments)
        else:
            self._running = self._pool.submit(lambda: None)

    def _write(self, folder: Path, content: dict, meta: dict, group) -> None:
        checkpoint.write(folder, content, meta, group)
        if dist.get_rank() == 0:
            prune(self.folder, self.keep)

    def check(self) -> None:
        """Raise the error of the present save, if it has ended in all processes. This is cheap if there is none."""
        if self._running is not None and self._ended():
            self.wait()

    def _ended(self) -> bool:
        ended = torch.tensor(int(self._running.done()))
        if self._groups is not None:
            dist.all_reduce(ended, "min", self._groups[1])
        return bool(ended)

    def wait(self) -> None:
        """Wait until the present save has ended. Raises its error, if it failed in any process."""
        if self._running is None:
            return
        running, self._running = self._running, None
        error = running.exception()
        words = dist.all_gather_object(error and (str(error) or repr(error)), self._groups and self._groups[1])
        if error is not None:
            raise error
        if any(words):
            raise ValueError(next(filter(None, words)))

    def abandon(self) -> None:
        """Call this if training has failed. It waits a short time for the present save.

        If other processes are gone, the save may never end. Then its folder does not get its final name."""
        if self._running is not None:
            wait([self._running], timeout=SOON)

    def close(self) -> None:
        """Call this at the end of a stage. It waits for the present save."""
        self.wait()


def copied(value):
    """Copy dicts, lists and tuples, with all tensors in them to the CPU. Of sharded tensors, this process's part.

    Torch's own stager (2.11 to 2.14) has weak references to storages. It sometimes fails if several models are trained
    in one process: "invalid python storage".
    """
    if isinstance(value, DTensor):
        # ``from_local`` would move the part to the mesh's device.
        names, layout = value.__tensor_flatten__()
        inside = {name: copied(getattr(value, name)) for name in names}
        return DTensor.__tensor_unflatten__(inside, layout, value.size(), value.stride())
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(copied, value))
    return value
