"""Several datasets in one run, each with a share of the samples.

The sample at a position follows from the seed and the position alone, so that a run goes on anywhere without going
through what lies before. How many come of each source is Webster's method (Sainte-Lague), the usual rounding of shares:
the next sample is of the source with the least ``(2 * drawn + 1) / weight``.
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
    """How many of the first ``position`` samples are of which source: their weights' shares, rounded, at every
    position. weights: positive, as they are written: 0.1 is a tenth."""

    def __init__(self, weights: list[int | float]):
        exact = [Fraction(str(weight)) for weight in weights]
        self.parts = [weight / sum(exact) for weight in exact]
        whole = math.lcm(*(part.numerator for part in self.parts))
        self.steps = [int(whole / part) for part in self.parts]  # 1 / weight, as whole numbers: compared exactly

    def next(self, drawn: list[int]) -> int:
        """The source of the next sample."""
        return min(range(len(drawn)), key=lambda source: (2 * drawn[source] + 1) * self.steps[source])

    def drawn(self, position: int) -> list[int]:
        """By source. The work is the same at every position."""
        slack = len(self.parts) / 2 + 1  # no source is ever further behind its exact share
        drawn = [max(0, math.floor(position * part - slack)) for part in self.parts]
        for _ in range(position - sum(drawn)):
            drawn[self.next(drawn)] += 1
        return drawn


class MixtureSampler:
    """Endless indices into the sources put one behind another.

    Each ``WINDOW`` of positions holds the sources that `Shares` gives it, in an order that the seed decides: processes
    take every n-th sample, and of sources in turn each would get one alone.

    samplers: one a source, each with its own order, `ResumableSampler` or another mixture's. lengths: of the sources.
    """

    def __init__(self, samplers: list, *, lengths: list[int], shares: Shares, seed: int):
        self.samplers, self.shares, self.seed, self.start = samplers, shares, seed, 0
        self.first = list(accumulate(lengths[:-1], initial=0))

    def seek(self, position: int) -> None:
        """Let the next iteration begin at ``position``."""
        if position < 0:
            raise ValueError(f"position {position} lies before the first sample")
        self.start = position

    def drawn(self, position: int) -> list[int]:
        """How many of the first ``position`` samples are of which source."""
        window, offset = divmod(position, WINDOW)
        counts = self.shares.drawn(window * WINDOW)
        for source in self._window(window, list(counts))[:offset]:
            counts[source] += 1
        return counts

    def _window(self, window: int, drawn: list[int]) -> list[int]:
        """The sources of a window. drawn: in front of it; gets those of the window added."""
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
    """The order in which a dataset's samples are drawn: its own (a mixture has one), or all of them once an epoch."""
    return dataset.sampler(seed) if hasattr(dataset, "sampler") else ResumableSampler(length=len(dataset), seed=seed)


@DATASETS.register_module()
class Mixture(ConversationDataset):
    """Several data sets as one, each with a weight.

    sources: dicts of ``dataset`` (a dataset's config), ``weight`` (any positive number; shares are relative; default:
    its number of records) and ``name`` (in logs; default: its own). After every ``WINDOW`` samples each source has been
    drawn its weight's share, rounded, and in an order of its own: none of its samples comes twice before all have come
    once.
    For the other arguments, which all sources get, see `asvr.data.records.ConversationDataset`.

    As a list of records it is its sources one behind another. Its length, an epoch, is all of theirs: with weights,
    some come more than once in that, and some not at all.

    Raises: ValueError where a source, a weight or a name is none.
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
            raise ValueError(f"Mixture: two sources are called {twice[0]!r}: give each a `name` of its own")
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
        """How many of the first ``position`` samples of training are of which source."""
        return dict(zip(self.names, self.sampler(seed).drawn(position), strict=True))

    def _find(self, i: int) -> tuple[ConversationDataset, int]:
        """The dataset that record ``i`` is of, and its number there."""
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
        """Of every record once, whatever the weights."""
        for dataset in self.datasets:
            yield from dataset.texts(template)

    def some_images(self, limit: int) -> Sample:
        """Of each source its part of them: a small one may lie elsewhere too."""
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
