"""Opening pictures."""

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from asvr.data.refusals import Refused
from asvr.data.stored_picture import StoredPicture

# What PIL raises for a file that is no picture, cut off, broken or absurdly large.
BROKEN = (OSError, SyntaxError, ValueError, TypeError, NotImplementedError, Image.DecompressionBombError)
# What brings a picture with this EXIF orientation upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(
    source: "str | Path | StoredPicture | Image.Image",
    *,
    formats: tuple[str, ...] | None = None,
    max_pixels: int | None = None,
    upright: bool = False,
) -> Image.Image:
    """A picture in RGB, from its file, out of a larger one, or itself.

    formats: those of PIL's that a file may have, None for all. max_pixels: a larger file is refused, before it is
    decoded where its header tells the truth. upright: turned as its EXIF orientation says; training takes pictures as
    they are stored, as the released code does.
    Raises: `Refused`, naming the file, where it is missing or unreadable.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source)
    try:
        file = io.BytesIO(source.read()) if isinstance(source, StoredPicture) else source
        with Image.open(file, formats=formats) as image:
            _check_size(image, source, max_pixels)
            picture = _to_rgb(_turned(image) if upright else image)
            _check_size(picture, source, max_pixels)  # a container may hold more than its header tells
            return picture
    except FileNotFoundError as error:
        raise Refused(f"the picture {source} is missing", "missing picture") from error
    except Refused:
        raise
    except BROKEN as error:
        raise Refused(f"the picture {source} cannot be read: {error}", "unreadable picture") from error


def _check_size(image: Image.Image, source: "str | Path", max_pixels: int | None) -> None:
    if max_pixels is not None and image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height} pixels"
        raise Refused(f"the picture {source} has {size}, the limit is {max_pixels:,}", "too large a picture")


def _turned(image: Image.Image) -> Image.Image:
    """Upright, whatever else its EXIF block holds: PIL's own function writes all of it back, odd tags included."""
    image.load()  # TIFF files are turned by that
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # PIL's parser guards against little, and viewers show a picture with a broken block as it is
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    """PIL cuts 16-bit grey off at 255, where it is white: its upper eight bits are what a screen shows."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def picture_bytes(image: Image.Image) -> bytes:
    """What a picture in memory shows, as it will be read: its palette is part of that."""
    return f"RGB {image.size}".encode() + _to_rgb(image).tobytes()
