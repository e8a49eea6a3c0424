"""The collate function: it turns items of a dataset into a `Batch`, in the workers of the DataLoader.

Legend: ``B`` rows, ``T`` tokens in a row, ``I`` encoder images in the batch (each crop counts as one), ``N`` visual
tokens of an encoder image, ``S`` supervised text positions.
"""

from collections.abc import Collection, Iterable

import torch

from asvr.data.batch import IGNORE, IMAGE_TOKEN, Batch, Segments
from asvr.data.conversation import require_learned
from asvr.data.images import MAX_PIXELS, UNREADABLE, image_size, open_image
from asvr.data.layouts import ImageLayout, crop_keys
from asvr.data.places import places_of
from asvr.data.refusals import Refusal, Refused, check_policy
from asvr.data.transforms import ASPECTS, ImageTransform, stacked

ENCODER = "encoder"  # the view that cached features replace; others are named <target> or <target>.<what>


class Collate:
    """The collate function: it expands images to their visual tokens, pads the rows and makes the pixels.

    layout: the visual tokens of an image, see `ImageLayout`. views: name -> transform; equal transforms share one
    tensor. targets: names of targets whose truth the cache may have. image_aspect: see `ImageTransform`. max_length:
    the longest row that may arrive (the dataset has cut it), or None. on_error: what happens to a sample whose image
    cannot be read: ``raise`` or ``skip``. max_pixels: of an image, see `open_image`. padding_side: ``right``, which
    needs no attention mask, or ``left``. packed: put all samples into one row, see `asvr.data.batch.Segments`. shifts:
    in training, those of the targets that learn from images; a sample without any loss is refused. None for questions.
    cache: an `asvr.caches.features.FeatureCache`, or an object with its ``check``, ``features`` and ``truth``. The last
    two return values for all keys, or None. Views that the cache replaces have no pixels, and no image is opened for
    them.

    A refused sample is left out and stands in ``Batch.refusals``. If no sample is left, the batch is one padding token
    without a loss, so that the step still runs.
    """

    def __init__(
        self,
        *,
        layout: ImageLayout,
        views: dict[str, ImageTransform],
        pad_id: int,
        targets: Iterable[str] = (),
        image_aspect: str = "square",
        max_length: int | None = None,
        on_error: str = "raise",
        max_pixels: int = MAX_PIXELS,
        padding_side: str = "right",
        packed: bool = False,
        shifts: Collection[int] | None = None,
        cache=None,
    ):
        if image_aspect not in ASPECTS:
            raise ValueError(f"data.image_aspect={image_aspect!r} is unknown: expected one of {ASPECTS}")
        self.layout = layout
        self.views = dict(views)
        self.targets = list(targets)
        self.pad_id = pad_id
        self.image_aspect = image_aspect
        self.max_length = max_length
        self.on_error = check_policy(on_error)
        self.max_pixels = max_pixels
        self.padding_side, self.packed, self.shifts = padding_side, packed, shifts
        self.cache = cache

    def __call__(self, items: list) -> Batch:
        refusals = [item for item in items if isinstance(item, Refusal)]
        items, refused = self.laid_out([item for item in items if not isinstance(item, Refusal)])
        refusals += refused
        items, _, refused = self._guarded(items, self._check)
        refusals += refused
        cached = self._cached(_crop_keys(items))
        views = {name: view for name, view in self.views.items() if name.partition(".")[0] not in cached}
        items, pixels, refused = self._decode(items, views)
        if refused:  # the batch has fewer images now
            cached = self._cached(_crop_keys(items))
        rows = [self._expand(item) for item in items] or [([self.pad_id], [IGNORE], [])]
        return Batch(
            **self._indices(rows, [layout for item in items for layout in item["layouts"]]),
            pixels=pixels,
            features_INE=cached.pop(ENCODER, None),
            truth=cached,
            sample_ids=[item["sample_id"] for item in items],
            refusals=refusals + refused,
        )

    def laid_out(self, items: list[dict]) -> tuple[list[dict], list[Refusal]]:
        """The items with ``layouts``, one for each image. An item is refused if it needs the size of an image that
        cannot be read."""

        def layouts(item: dict) -> list:
            if (fixed := self.layout.fixed) is not None:
                return [fixed] * item["input_ids"].count(IMAGE_TOKEN)
            sizes = item.get("image_sizes") or [image_size(s, max_pixels=self.max_pixels) for s in item["images"]]
            return [self.layout(size) for size in sizes]

        kept, found, refused = self._guarded(items, lambda item: item.get("layouts") or layouts(item))
        return [dict(item, layouts=own) for item, own in zip(kept, found, strict=True)], refused

    def _check(self, item: dict) -> None:
        if self.shifts is not None:
            row = dict(input_ids=item["input_ids"], labels=item["labels"], shifts=self.shifts)
            sizes = [layout.num_visual for layout in item["layouts"]]
            require_learned(**row, num_image_tokens=sizes, cut_to=item.get("cut_to"))
        if self.cache is not None:
            self.cache.check(item["image_keys"])

    def _cached(self, keys: list[str]) -> dict:
        if self.cache is None or not keys:
            return {}
        found = {ENCODER: self.cache.features(keys)}
        found |= {name: self.cache.truth(name, keys) for name in self.targets}
        return {name: values for name, values in found.items() if values is not None}

    def _decode(self, items: list[dict], views: dict) -> tuple[list[dict], dict, list[Refusal]]:
        """Open each image once and apply the transforms of the views to it, or to each of its crops."""
        transforms = list(dict.fromkeys(views.values()))

        def pixels(item: dict) -> list[list]:
            sources = item["images"] if transforms else []
            crops = [self._crops(*pair) for pair in zip(sources, item["layouts"], strict=bool(transforms))]
            return [[transform(one, self.image_aspect) for own in crops for one in own] for transform in transforms]

        items, decoded, refused = self._guarded(items, pixels)
        stacks = {t: [image for of_item in decoded for image in of_item[i]] for i, t in enumerate(transforms)}
        tensors = {t: stacked(stack) for t, stack in stacks.items() if stack}
        return items, {name: tensors[t] for name, t in views.items() if t in tensors}, refused

    def _crops(self, source, layout) -> list:
        crops = self.layout.crops(open_image(source, max_pixels=self.max_pixels))
        if len(crops) != layout.num_crops:
            raise Refused(f"the image {source} has another size than its header says", UNREADABLE)
        return crops

    def _guarded(self, items: list[dict], make) -> tuple[list[dict], list, list[Refusal]]:
        """The items that ``make`` does not refuse, its results for them, and the refusals."""
        kept, made, refused = [], [], []
        for item in items:
            try:
                result = make(item)
            except Refused as error:
                message = f"{item['sample_id']}: {error}"
                if self.on_error == "raise":
                    raise Refused(message, error.reason) from error
                refused.append(Refusal(item["sample_id"], error.reason, message))
            else:
                kept.append(item)
                made.append(result)
        return kept, made, refused

    def _expand(self, item: dict) -> tuple[list[int], list[int], list[int]]:
        """Return ids and labels with all positions of each image, and the first position of each image."""
        input_ids, labels, starts = [], [], []
        assert item["input_ids"].count(IMAGE_TOKEN) == len(item["image_keys"]) == len(item["layouts"]), (
            f"{item['sample_id']}: marks and images differ in number"
        )
        sizes = (layout.num_tokens for layout in item["layouts"])
        for token, label in zip(item["input_ids"], item["labels"], strict=True):
            if token == IMAGE_TOKEN:
                size = next(sizes)
                starts.append(len(input_ids))
                input_ids += [IMAGE_TOKEN] * size
                labels += [IGNORE] * size
            else:
                input_ids.append(token)
                labels.append(label)
        assert self.max_length is None or len(input_ids) <= self.max_length, (
            f"{item['sample_id']}: {len(input_ids)} positions, the limit is {self.max_length}: "
            "dataset and collate disagree about max_length or the tokens of an image"
        )
        return input_ids, labels, starts

    def _indices(self, rows: list[tuple[list[int], list[int], list[int]]], layouts: list) -> dict:
        lengths = [len(input_ids) for input_ids, _, _ in rows]
        layout, first_B = self._packed(rows, lengths) if self.packed else self._padded(rows, lengths)
        sources, targets, starts, alone = [], [], [], []
        for first, (_, labels, own) in zip(first_B, rows, strict=True):
            supervised = [t for t, label in enumerate(labels) if label != IGNORE and t > 0]
            sources += [first + t - 1 for t in supervised]
            targets += [labels[t] for t in supervised]
            starts += [first + start for start in own]
            alone += [start == 0 for start in own]
        return dict(
            **layout,
            **places_of(layouts, starts, alone, self.layout.num_cells),
            text_source_S=torch.tensor(sources, dtype=torch.int64),
            text_target_S=_whole_numbers(targets),
            num_tokens=sum(lengths),
        )

    def _padded(self, rows: list, lengths: list[int]) -> tuple[dict, list[int]]:
        """One row for each sample, and the flat position at which each sample begins."""
        width = max(lengths)
        begin_B = [width - length if self.padding_side == "left" else 0 for length in lengths]
        ids_BT = [
            [self.pad_id] * begin + ids + [self.pad_id] * (width - begin - len(ids))
            for begin, (ids, _, _) in zip(begin_B, rows, strict=True)
        ]
        place_BT = torch.arange(width) - torch.tensor(begin_B)[:, None]
        layout = dict(
            input_ids_BT=_whole_numbers(ids_BT),
            attention_mask_BT=(place_BT >= 0) & (place_BT < torch.tensor(lengths)[:, None]),
            left_padded=any(begin_B),
        )
        return layout, [b * width + begin for b, begin in enumerate(begin_B)]

    def _packed(self, rows: list, lengths: list[int]) -> tuple[dict, list[int]]:
        """One row of all samples without padding, and the position at which each begins."""
        segments = Segments.of(lengths)
        layout = dict(
            input_ids_BT=_whole_numbers([[token for ids, _, _ in rows for token in ids]]),
            attention_mask_BT=torch.ones(1, sum(lengths), dtype=torch.bool),
            segments=segments,
        )
        return layout, segments.offsets[:-1].tolist()


def _crop_keys(items: list[dict]) -> list[str]:
    pairs = (pair for item in items for pair in zip(item["image_keys"], item["layouts"], strict=True))
    return [crop for key, layout in pairs for crop in crop_keys(key, layout.num_crops)]


def _whole_numbers(ids: list) -> torch.Tensor:
    """The numbers as int64. Raises ``ValueError`` for floats and booleans, which would be converted silently."""
    found = torch.tensor(ids)
    if found.numel() and (found.is_floating_point() or found.dtype == torch.bool):
        raise ValueError(f"input_ids or labels of a sample are {found.dtype}: expected integers, the ids of tokens")
    return found.long()
