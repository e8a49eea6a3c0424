"""Packing and grouping: which samples of an optimisation step share a micro-batch.

They only move samples inside a step. Its samples, and so its objective, stay the same; only the time changes.
"""

from collections.abc import Iterable

from asvr.data.batch import Batch
from asvr.data.collate import Collate
from asvr.data.refusals import Refusal

LENGTH, MODALITY = "length", "modality"


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


class StepCollate:
    """The collate function of an optimisation step: it turns the items of a step into micro-batches.

    micro_batch: rows of a padded micro-batch. pack: the limits of a packed micro-batch, ``dict(max_tokens,
    max_images)``; None: no packing. group: None (keep the order), ``length`` or ``modality``, see `group_rows`.
    """

    def __init__(self, collate: Collate, *, micro_batch: int, pack: dict | None = None, group: str | None = None):
        assert collate.packed == (pack is not None), "collate and pack disagree"
        self.collate, self.micro_batch, self.pack, self.group = collate, micro_batch, pack, group

    def __call__(self, items: list) -> list[Batch]:
        refused = [item for item in items if isinstance(item, Refusal)]
        items, unread = self.collate.laid_out([item for item in items if not isinstance(item, Refusal)])
        groups = [[items[i] for i in group] for group in self._groups(items)] or [[]]
        return [self.collate([*refused, *unread, *groups[0]]), *map(self.collate, groups[1:])]

    def _groups(self, items: list[dict]) -> Iterable[list[int]]:
        images = [sum(layout.num_crops for layout in item["layouts"]) for item in items]
        lengths = [len(item["input_ids"]) + sum(layout.num_tokens - 1 for layout in item["layouts"]) for item in items]
        if self.pack is not None:
            return best_fit_decreasing(lengths, images, **self.pack)
        if self.group is not None:
            return group_rows(lengths, images, rows=self.micro_batch, by=self.group)
        order = list(range(len(items)))
        return [order[begin : begin + self.micro_batch] for begin in range(0, len(order), self.micro_batch)]
