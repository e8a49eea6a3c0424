"""Samplers that can begin at any position without reading data."""

from collections.abc import Iterator
from itertools import islice

import numpy as np


class ResumableSampler:
    """Endless shuffled indices of a dataset with ``length`` samples; each epoch has its own order.

    The index at a position depends only on the seed and the position."""

    def __init__(self, *, length: int, seed: int = 0):
        if length < 1:
            raise ValueError(f"the dataset has {length} samples: expected at least one")
        self.length, self.seed, self.start = length, seed, 0

    def seek(self, position: int) -> None:
        """Let the next iteration begin at ``position``, counted over all epochs."""
        if position < 0:
            raise ValueError(f"position={position}: expected at least 0")
        self.start = position

    def order(self, epoch: int) -> np.ndarray:
        """The indices of an epoch, shape (length,)."""
        # RandomState is the generator whose numbers NumPy promises to keep in later versions.
        generator = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([self.seed, epoch])))
        return generator.permutation(self.length)

    def __iter__(self) -> Iterator[int]:
        epoch, offset = divmod(self.start, self.length)
        while True:
            yield from map(int, self.order(epoch)[offset:])  # a list of Python integers is five times as large
            epoch, offset = epoch + 1, 0


class WindowSampler(ResumableSampler):
    """A `ResumableSampler` for data that are read in order: it shuffles inside windows of ``window`` indices, and the
    windows follow each other in order."""

    def __init__(self, *, length: int, window: int, seed: int = 0):
        super().__init__(length=length, seed=seed)
        self.window = window

    def order(self, epoch: int) -> np.ndarray:
        by_chance = super().order(epoch)
        return by_chance[np.argsort(by_chance // self.window, kind="stable")]


class BatchSampler:
    """Batches of ``size`` indices of a sampler. A batch may contain the end of an epoch.

    rank, world_size: each of several processes gets every ``world_size``-th index of the same batch. Some may get one
    index more than others, or none. With the defaults each process gets all indices.
    """

    def __init__(self, sampler: ResumableSampler, *, size: int, rank: int = 0, world_size: int = 1):
        if size < 1:
            raise ValueError(f"size={size}: expected at least one sample")
        self.sampler, self.size, self.rank, self.world_size = sampler, size, rank, world_size

    def seek(self, position: int) -> None:
        """Let the next iteration begin at ``position``, in samples."""
        self.sampler.seek(position)

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        while True:
            yield list(islice(indices, self.size))[self.rank :: self.world_size]
