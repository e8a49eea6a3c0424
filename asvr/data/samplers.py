"""Orders of samples that can begin anywhere without reading any data."""

from collections.abc import Iterator
from itertools import islice

import numpy as np


class ResumableSampler:
    """The indices of a dataset of ``length`` samples, epoch after epoch without end, each in another order; which
    index stands at a position depends on nothing but the seed and the position."""

    def __init__(self, *, length: int, seed: int = 0):
        if length < 1:
            raise ValueError(f"the dataset has {length} samples: nothing to draw from")
        self.length, self.seed, self.start = length, seed, 0

    def seek(self, position: int) -> None:
        """Let the next iteration begin at ``position``, counted over all epochs."""
        if position < 0:
            raise ValueError(f"position {position} lies before the first sample")
        self.start = position

    def order(self, epoch: int) -> np.ndarray:
        """The indices of an epoch (length,)."""
        # RandomState is the generator whose numbers NumPy promises to keep in later versions.
        generator = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([self.seed, epoch])))
        return generator.permutation(self.length)

    def __iter__(self) -> Iterator[int]:
        epoch, offset = divmod(self.start, self.length)
        while True:
            yield from map(int, self.order(epoch)[offset:])  # one at a time: Python's own are five times as large
            epoch, offset = epoch + 1, 0


class WindowSampler(ResumableSampler):
    """The same for data that are read in order: each ``window`` indices are drawn in an order of their own, one window
    behind the other."""

    def __init__(self, *, length: int, window: int, seed: int = 0):
        super().__init__(length=length, seed=seed)
        self.window = window

    def order(self, epoch: int) -> np.ndarray:
        by_chance = super().order(epoch)
        return by_chance[np.argsort(by_chance // self.window, kind="stable")]


class BatchSampler:
    """``size`` indices of a sampler at a time; they run on over the end of an epoch.

    rank, world_size: of several processes, each gets every ``world_size``-th of the same indices; some may get one
    more, or none.
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
