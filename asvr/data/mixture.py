"""Several datasets in one run, each with a share of the samples.

The seed and the position alone decide the sample at a position. So a run can resume anywhere without reading the
samples before. Webster's method (Sainte-Lague), the usual way to round shares, decides how many samples come from each
source: the next sample comes from the source with the least ``(2 * drawn + 1) / weight``.
"""

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction
from itertools import accumulate

import numpy as np

from asvr.data.image_digest import LEAST, Sample
from asvr.data.records import ConversationDataset
from asvr.data.refusals import Refusal
from asvr.data.samplers import ResumableSampler
from asvr.registry import DATASETS

WINDOW = 32  # positions


class Shares:
    """How many of the first ``position`` samples come from each source: at every position, its rounded share.

    weights: positive numbers, taken as they are written: 0.1 is exactly a tenth."""

    def __init__(self, weights: list[int | float]):
        exact = [Fraction(str(weight)) for weight in weights]
        self.parts = [weight / sum(exact) for weight in exact]
        whole = math.lcm(*(part.numerator for part in self.parts))
        self.steps = [int(whole / part) for part in self.parts]  # 1 / weight as integers, to compare exactly

    def next(self, drawn: list[int]) -> int:
        """The source of the next sample."""
        return min(range(len(drawn)), key=lambda source: (2 * drawn[source] + 1) * self.steps[source])

    def drawn(self, position: int) -> list[int]:
        """The counts by source. The cost is the same at every position."""
        slack = len(self.parts) / 2 + 1  # no source is further behind its exact share
        drawn = [max(0, math.floor(position * part - slack)) for part in self.parts]
        for _ in range(position - sum(drawn)):
            drawn[self.next(drawn)] += 1
        return drawn


class MixtureSampler:
    """Endless indices into the concatenated sources.

    `Shares` decides how often each source occurs in a ``WINDOW`` of positions; the seed decides their order in it. The
    order is random because processes take every n-th sample: with sources in turn, a process could get one only.

    samplers: one for each source: a `ResumableSampler` or the sampler of another mixture. lengths: of the sources.
    """

    def __init__(self, samplers: list, *, lengths: list[int], shares: Shares, seed: int):
        self.samplers, self.shares, self.seed, self.start = samplers, shares, seed, 0
        self.first = list(accumulate(lengths[:-1], initial=0))

    def seek(self, position: int) -> None:
        """Let the next iteration begin at ``position``."""
        if position < 0:
            raise ValueError(f"position={position}: expected at least 0")
        self.start = position

    def drawn(self, position: int) -> list[int]:
        """How many of the first ``position`` samples come from each source."""
        window, offset = divmod(position, WINDOW)
        counts = self.shares.drawn(window * WINDOW)
        for source in self._window(window, list(counts))[:offset]:
            counts[source] += 1
        return counts

    def _window(self, window: int, drawn: list[int]) -> list[int]:
        """The sources of a window. drawn: the counts before it; the counts of the window are added."""
        sources = []
        for _ in range(WINDOW):
            sources.append(self.shares.next(drawn))
            drawn[sources[-1]] += 1
        generator = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([self.seed, window])))
        return [sources[i] for i in generator.permutation(WINDOW)]

    def __iter__(self) -> Iterator[int]:
        for sampler, count in zip(self.samplers, self.drawn(self.start), strict=True):
            sampler.seek(count)
        indices = [iter(sampler) for sampler in self.samplers]
        window, offset = divmod(self.start, WINDOW)
        drawn = self.shares.drawn(window * WINDOW)
        while True:
            for source in self._window(window, drawn)[offset:]:
                yield self.first[source] + next(indices[source])
            window, offset = window + 1, 0


def sampler_of(dataset, seed: int):
    """The sampler of a dataset: its own, as a mixture has one, or else one that draws each sample once an epoch."""
    return dataset.sampler(seed) if hasattr(dataset, "sampler") else ResumableSampler(length=len(dataset), seed=seed)


@DATASETS.register_module()
class Mixture(ConversationDataset):
    """Several datasets as one, each with a weight.

    sources: dicts with ``dataset`` (the config of a dataset), ``weight`` (any positive number; only their ratios
    count; default: its number of records) and ``name`` (for logs; default: the dataset's own).

    For the other arguments, which all sources get, see `asvr.data.records.ConversationDataset`. After every ``WINDOW``
    samples, each source has had its rounded share. Each source has its own order: no sample comes twice before all have
    come once.

    As a list of records, a mixture is its sources one after another. Its length is the sum of their lengths; that is an
    epoch. With weights, an epoch has some samples more than once, and others not at all.

    Raises: ValueError if a source, a weight or a name is not valid.
    """

    def __init__(self, *, sources: list, **kwargs):
        super().__init__(**kwargs)
        if not sources:
            raise ValueError("Mixture: sources is empty, expected [dict(dataset=dict(type=...), weight=1.0), ...]")
        self.datasets = [DATASETS.build(source["dataset"], default_args=dict(kwargs)) for source in sources]
        self.names = [
            source.get("name") or dataset.source for source, dataset in zip(sources, self.datasets, strict=True)
        ]
        if twice := [name for name in self.names if self.names.count(name) > 1]:
            raise ValueError(f"Mixture: two sources have the name {twice[0]!r}: give each source its own `name`")
        self.source = " + ".join(self.names)
        self.in_order = any(getattr(dataset, "in_order", False) for dataset in self.datasets)
        self.shares = Shares(_weights(sources, self.datasets))
        self.ends = list(accumulate(len(dataset) for dataset in self.datasets))

    def sampler(self, seed: int) -> MixtureSampler:
        """The order in which training draws."""
        own = [
            int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0]) for i in range(len(self.datasets))
        ]
        return MixtureSampler(
            [sampler_of(dataset, own_seed) for dataset, own_seed in zip(self.datasets, own, strict=True)],
            lengths=[len(dataset) for dataset in self.datasets],
            shares=self.shares,
            seed=seed,
        )

    def drawn(self, position: int, seed: int) -> dict[str, int]:
        """The number of samples from each source among the first ``position`` samples of training."""
        return dict(zip(self.names, self.sampler(seed).drawn(position), strict=True))

    def _find(self, i: int) -> tuple[ConversationDataset, int]:
        """The dataset of record ``i``, and the number of the record there."""
        source = bisect_right(self.ends, i)
        return self.datasets[source], i - (self.ends[source] - len(self.datasets[source]))

    def __len__(self) -> int:
        return self.ends[-1]

    def record(self, i: int) -> dict:
        dataset, own = self._find(i)
        return dataset.record(own)

    def sample_id(self, i: int) -> str:
        dataset, own = self._find(i)
        return dataset.sample_id(own)

    def __getitem__(self, i: int) -> dict | Refusal:
        dataset, own = self._find(i)
        return dataset[own]

    def question(self, i: int) -> dict | Refusal:
        dataset, own = self._find(i)
        return dataset.question(own)

    def fingerprint(self) -> str:
        parts = [
            [str(share), dataset.fingerprint()] for share, dataset in zip(self.shares.parts, self.datasets, strict=True)
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def texts(self, template=None) -> Iterator[str]:
        """The texts of every record once. Weights do not count here."""
        for dataset in self.datasets:
            yield from dataset.texts(template)

    def some_images(self, limit: int) -> Sample:
        """Some images of each source, so that a small source is checked too."""
        own = max(LEAST, limit // len(self.datasets))
        return [
            (f"{i} {name}", source)
            for i, dataset in enumerate(self.datasets)
            for name, source in dataset.some_images(own)
        ]

    def images(self) -> Iterator[tuple]:
        seen = set()
        for dataset in self.datasets:
            for key, source in dataset.images():
                if key not in seen:
                    seen.add(key)
                    yield key, source


def _weights(sources: list, datasets: list) -> list[int | float]:
    weights = [source.get("weight") for source in sources]
    if all(weight is None for weight in weights):
        return [len(dataset) for dataset in datasets]
    for i, weight in enumerate(weights):
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < math.inf:
            raise ValueError(
                f"Mixture: sources[{i}].weight={weight!r}: expected a positive number for every source, or for none "
                "(shares then follow their numbers of records)"
            )
    return weights
