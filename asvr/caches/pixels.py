"""The pixels of many images in batches, for caches."""

from collections.abc import Iterator

from asvr.data.images import LARGEST_LIMIT, MAX_PIXELS, image_size, open_image
from asvr.data.layouts import ImageLayout
from asvr.data.refusals import Refused
from asvr.data.transforms import stacked

BATCH = 32  # crops


def pixel_batches(
    keys: list[str],
    images: dict,
    transforms: list,
    aspect: str,
    *,
    layout: ImageLayout | None = None,
    refused: dict | None = None,
    max_pixels: int = LARGEST_LIMIT,
) -> Iterator[tuple]:
    """Yield batches of crops: the keys of their images, then the stacked output of each transform.

    Each image is opened once. layout: the crops of an image; None: no crops. refused: a dict that gets key -> (message,
    reason) for images that cannot be read; None: `Refused` is raised. max_pixels: of an image. The default is PIL's own
    limit, for images whose size was checked before.
    """
    names, stacks = [], [[] for _ in transforms]
    for key in keys:
        try:
            image = open_image(images[key], max_pixels=max_pixels)
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


def num_crops(images: dict, *, layout: ImageLayout | None, max_pixels: int = MAX_PIXELS) -> int:
    """The most crops that all images have; images that cannot be read have none."""
    if layout is None or layout.fixed is not None:
        return len(images) * (1 if layout is None else layout.fixed.num_crops)
    found = 0
    for source in images.values():
        try:
            found += layout(image_size(source, max_pixels=max_pixels)).num_crops
        except Refused:  # reported or raised when it is opened
            continue
    return found
