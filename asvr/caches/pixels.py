"""The pixels of many images in batches, for what is computed of all of them."""

from collections.abc import Iterator

from asvr.data.images import LARGEST_LIMIT, MAX_PIXELS, image_size, open_image
from asvr.data.layouts import ImageLayout
from asvr.data.refusals import Refused
from asvr.data.transforms import stacked

BATCH = 32  # crops


def pixel_batches(
    keys: list[str],
    pictures: dict,
    transforms: list,
    aspect: str,
    *,
    layout: ImageLayout | None = None,
    refused: dict | None = None,
    max_pixels: int = LARGEST_LIMIT,
) -> Iterator[tuple]:
    """For some crops each time: the keys of their images, then what each transform makes of them, stacked. Each
    image is opened once.

    layout: the crops of an image; None: it is one. refused: gets key -> (message, reason) of what cannot be read; None
    raises `Refused`. max_pixels: of an image; by default that was checked before, when its features were computed.
    """
    names, stacks = [], [[] for _ in transforms]
    for key in keys:
        try:
            image = open_image(pictures[key], max_pixels=max_pixels)
            crops = [image] if layout is None else layout.crops(image)
            made = [[transform(crop, aspect) for transform in transforms] for crop in crops]
        except Refused as error:
            if refused is None:
                raise
            refused[key] = (str(error), error.reason)
            continue
        for of_crop in made:
            names.append(key)
            for stack, one in zip(stacks, of_crop, strict=True):
                stack.append(one)
            if len(names) == BATCH:
                yield names, *map(stacked, stacks)
                names, stacks = [], [[] for _ in transforms]
    if names:
        yield names, *map(stacked, stacks)


def num_crops(pictures: dict, *, layout: ImageLayout | None, max_pixels: int = MAX_PIXELS) -> int:
    """Of all images, at most: those that cannot be read have none."""
    if layout is None or layout.fixed is not None:
        return len(pictures) * (1 if layout is None else layout.fixed.num_crops)
    found = 0
    for source in pictures.values():
        try:
            found += layout(image_size(source, max_pixels=max_pixels)).num_crops
        except Refused:  # told, or raised, when it is opened
            continue
    return found
