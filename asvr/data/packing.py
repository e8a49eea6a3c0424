"""Packing, grouping and balance: which samples of an optimisation step share a micro-batch and a process.

They only move samples inside a step. Its samples, and so its objective, stay the same; only the time changes.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from asvr.data.batch import Batch
from asvr.data.collate import Collate
from asvr.data.refusals import Refusal

LENGTH, MODALITY = "length", "modality"
GAIN = 1e-3  # an exchange of samples between processes that saves less is not made


def best_fit_decreasing(
    lengths: list[int], images: list[int], *, max_tokens: int, max_images: int | None = None
) -> list[list[int]]:
    """Put samples into bins: the longest sample first, each into the fullest bin with enough room.

    Returns the indices of each bin in ascending order. A sample above a limit gets its own bin. lengths: tokens of each
    sample, visual tokens included. images: encoder images of each sample; each crop counts as one.
    """
    limit = float("inf") if max_images is None else max_images
    bins: list[tuple[list[int], int, int]] = []  # indices, tokens, images
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        room = [b for b, (_, t, p) in enumerate(bins) if t + lengths[i] <= max_tokens and p + images[i] <= limit]
        if room:
            best = max(room, key=lambda b: bins[b][1])
            members, tokens, count = bins[best]
            bins[best] = ([*members, i], tokens + lengths[i], count + images[i])
        else:
            bins.append(([i], lengths[i], images[i]))
    return [sorted(members) for members, _, _ in bins]


def group_rows(lengths: list[int], images: list[int], *, rows: int, by: str) -> list[list[int]]:
    """Micro-batches of at most ``rows`` samples of similar length.

    by: ``length``, or ``modality``, which also separates samples with images from samples without."""
    kinds = [bool(count) for count in images] if by == MODALITY else [True] * len(lengths)
    groups = []
    for kind in sorted(set(kinds), reverse=True):
        members = sorted((i for i in range(len(lengths)) if kinds[i] == kind), key=lambda i: (-lengths[i], i))
        groups += [sorted(members[begin : begin + rows]) for begin in range(0, len(members), rows)]
    return groups


def deal(costs: list[float], shares: int) -> list[list[int]]:
    """Share samples out so that the largest sum of costs is small. Returns the indices of each share, ascending.

    The most expensive sample is dealt first, each to the least sum (Graham's LPT rule). Then the largest share gives a
    sample away, or changes one for a cheaper one, as long as this helps.
    """
    dealt: list[list[int]] = [[] for _ in range(shares)]
    heap = [(0.0, share) for share in range(shares)]
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        total, share = heapq.heappop(heap)
        dealt[share].append(i)
        heapq.heappush(heap, (total + costs[i], share))
    sums = [total for total, _ in sorted(heap, key=lambda entry: entry[1])]
    for _ in range(len(costs)):
        largest = max(range(shares), key=sums.__getitem__)
        found = _exchange(costs, dealt, sums, largest)
        if found is None:
            break
        share, given, taken = found
        for i, source, target in ((given, largest, share), (taken, share, largest)):
            if i is not None:
                dealt[source].remove(i)
                dealt[target].append(i)
                sums[source] -= costs[i]
                sums[target] += costs[i]
    return [sorted(own) for own in dealt]


def _exchange(
    costs: list[float], dealt: list[list[int]], sums: list[float], largest: int
) -> tuple[int, int, int | None] | None:
    """The share that the largest one exchanges with, the sample that it gives and the one that it gets (or None).

    The smallest shares are tried first, until one helps. None: the gain would be below `GAIN`."""
    for share in sorted(range(len(sums)), key=sums.__getitem__):
        gap = sums[largest] - sums[share]
        moves = [
            (costs[given] - (0.0 if taken is None else costs[taken]), given, taken)
            for given in dealt[largest]
            for taken in (None, *dealt[share])
        ]
        useful = [move for move in moves if GAIN * sums[largest] < min(move[0], gap - move[0])]
        if useful:
            _, given, taken = min(useful, key=lambda move: abs(move[0] - gap / 2))
            return share, given, taken
    return None


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Shares the samples of a step out to processes by their cost, see `deal`.

    rank, world_size: this process and the number of all. token, pair, crop: the cost of a token, of a pair of tokens
    in attention and of a crop of an image, in any unit.
    """

    rank: int
    world_size: int
    token: float = 1.0
    pair: float = 0.0
    crop: float = 0.0

    def cost(self, length: int, crops: int) -> float:
        return self.token * length + self.pair * length**2 + self.crop * crops

    def own(self, lengths: list[int], crops: list[int]) -> list[int]:
        """The indices of this process's samples. Every process must get the same lengths and crops."""
        return deal([self.cost(*sizes) for sizes in zip(lengths, crops, strict=True)], self.world_size)[self.rank]


class StepCollate:
    """The collate function of an optimisation step: it turns the items of a step into micro-batches.

    micro_batch: rows of a padded micro-batch. pack: the limits of a packed micro-batch, ``dict(max_tokens,
    max_images)``; None: no packing. group: None (keep the order), ``length`` or ``modality``, see `group_rows`.
    balance: the items are those of all processes, and this one keeps its share; None: all items are its own.
    """

    def __init__(
        self,
        collate: Collate,
        *,
        micro_batch: int,
        pack: dict | None = None,
        group: str | None = None,
        balance: Balance | None = None,
    ):
        assert collate.packed == (pack is not None), "collate and pack disagree"
        self.collate, self.micro_batch, self.pack, self.group = collate, micro_batch, pack, group
        self.balance = balance

    def __call__(self, items: list) -> list[Batch]:
        refused = [item for item in items if isinstance(item, Refusal)]
        items, unread = self.collate.laid_out([item for item in items if not isinstance(item, Refusal)])
        refused += unread
        if self.balance is not None:
            items = [items[i] for i in self.balance.own(*_sizes(items))]
            refused = refused[self.balance.rank :: self.balance.world_size]  # each is reported once
        groups = [[items[i] for i in group] for group in self._groups(items)] or [[]]
        return [self.collate([*refused, *groups[0]]), *map(self.collate, groups[1:])]

    def _groups(self, items: list[dict]) -> Iterable[list[int]]:
        lengths, images = _sizes(items)
        if self.pack is not None:
            return best_fit_decreasing(lengths, images, **self.pack)
        if self.group is not None:
            return group_rows(lengths, images, rows=self.micro_batch, by=self.group)
        order = list(range(len(items)))
        return [order[begin : begin + self.micro_batch] for begin in range(0, len(order), self.micro_batch)]


def _sizes(items: list[dict]) -> tuple[list[int], list[int]]:
    """Tokens, visual tokens included, and crops of images of each item."""
    lengths = [len(item["input_ids"]) + sum(layout.num_tokens - 1 for layout in item["layouts"]) for item in items]
    return lengths, [sum(layout.num_crops for layout in item["layouts"]) for item in items]
