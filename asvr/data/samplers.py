"""Orders of samples that can begin anywhere without reading any data."""

from collections.abc import Iterator
from itertools import islice

import numpy as np


class ResumableSampler:
    """The indices of a dataset, epoch after epoch; which index stands at a position depends on nothing
    but the seed and the position.

    length: of the dataset. epochs: how many; None is without end. start: the first position of the
    next iteration, counted over all epochs (``seek`` changes it).
    """

    def __init__(self, *, length: int, seed: int = 0, shuffle: bool = True, start: int = 0, epochs: int | None = None):
        if length < 1:
            raise ValueError(f"the dataset has {length} samples: nothing to draw from")
        self.length, self.seed, self.shuffle, self.epochs = length, seed, shuffle, epochs
        self.seek(start)

    def seek(self, position: int) -> None:
        """Let the next iteration begin at ``position``."""
        if position < 0:
            raise ValueError(f"position {position} lies before the first sample")
        self.start = position

    def order(self, epoch: int) -> np.ndarray:
        """The indices of an epoch (length,)."""
        if not self.shuffle:
            return np.arange(self.length)
        # RandomState is the generator whose numbers NumPy promises to keep in later versions.
        generator = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([self.seed, epoch])))
        return generator.permutation(self.length)

    def __iter__(self) -> Iterator[int]:
        epoch, offset = divmod(self.start, self.length)
        while self.epochs is None or epoch < self.epochs:
            yield from self.order(epoch)[offset:].tolist()
            epoch, offset = epoch + 1, 0


class BatchSampler:
    """Micro-batches of a sampler's indices; of each row of ``world_size`` micro-batches, this rank's one.

    Without end the micro-batches run on over the end of an epoch; otherwise the last one may be shorter.
    """

    def __init__(self, sampler: ResumableSampler, *, micro_batch: int, rank: int = 0, world_size: int = 1):
        if micro_batch < 1:
            raise ValueError(f"micro_batch={micro_batch}: expected at least one sample")
        self.sampler, self.micro_batch, self.rank, self.world_size = sampler, micro_batch, rank, world_size

    def seek(self, position: int) -> None:
        """Let the next iteration begin at ``position``, in samples over all ranks."""
        self.sampler.seek(position)

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        while row := list(islice(indices, self.micro_batch * self.world_size)):
            # Ranks take turns, so that a short last row leaves each of them its share.
            if mine := row[self.rank :: self.world_size]:
                yield mine
