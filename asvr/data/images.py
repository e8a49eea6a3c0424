"""Opening pictures."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from asvr.data.refusals import Refused

# What PIL raises for a file that is no picture, cut off, broken or absurdly large.
BROKEN = (OSError, SyntaxError, ValueError, NotImplementedError, Image.DecompressionBombError)


def open_image(
    source: "str | Path | Image.Image", *, max_pixels: int | None = None, upright: bool = False
) -> Image.Image:
    """A picture in RGB, from its file or itself.

    max_pixels: a larger file is refused before it is decoded. upright: turned as its EXIF orientation says; training
    takes pictures as they are stored, as the released code does.
    Raises: `Refused`, naming the file, where it is missing or unreadable.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source)
    try:
        with Image.open(source) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                size = f"{image.width} x {image.height} pixels"
                raise Refused(f"the picture {source} has {size}, the limit is {max_pixels:,}", "too large a picture")
            return _to_rgb(ImageOps.exif_transpose(image) if upright else image)
    except FileNotFoundError as error:
        raise Refused(f"the picture {source} is missing", "missing picture") from error
    except Refused:
        raise
    except BROKEN as error:
        raise Refused(f"the picture {source} cannot be read: {error}", "unreadable picture") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """PIL cuts 16-bit grey off at 255, where it is white: its upper eight bits are what a screen shows."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def picture_bytes(image: Image.Image) -> bytes:
    """What a picture in memory shows, as it will be read: its palette is part of that."""
    return f"RGB {image.size}".encode() + image.convert("RGB").tobytes()
