"""Functions that check and open images."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from asvr.base.text import short
from asvr.data.image_sources import RenderedImage, Source, StoredImage, refuse_elsewhere
from asvr.data.refusals import Refused

# PIL reads more formats: PostScript, which runs another program, and containers whose headers hide the image sizes.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 100_000_000  # 400 MB at PIL's four bytes a pixel
MAX_SIDE = 65_535  # as in JPEG; PIL's resize weights grow with a side, to gigabytes for a line of pixels
LARGEST_LIMIT = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # PIL itself refuses larger images
MISSING, UNREADABLE, TOO_LARGE = "missing image", "unreadable image", "too large an image"
# EXIF orientation -> the operation that turns the image upright.
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
    source: Source,
    *,
    formats: tuple[str, ...] = FORMATS,
    max_pixels: int = MAX_PIXELS,
    upright: bool = False,
) -> Image.Image:
    """Open an image in RGB from any source. An animated image gives its first frame.

    The content of a file decides its format, not its name. Transparency is dropped, as in the released code. formats:
    the accepted formats, by PIL's names. max_pixels: a larger image is refused before it is decoded. upright: turn the
    image as its EXIF orientation says; training uses images as they are stored, like the released code.

    Raises: `Refused`, with the name of the file, if it is missing, not a regular file, of another format, broken or too
    large.
    """
    with opened(source, formats=formats, max_pixels=max_pixels) as image:
        decoded = to_rgb(_turned(image) if upright else image)
        _check_size(decoded, _name(source), max_pixels)  # it may be larger than the header says
        return decoded


@contextmanager
def opened(
    source: Source, *, formats: tuple[str, ...] = FORMATS, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """A PIL image whose header has been read and checked. Raises `Refused` as `open_image` does, also for errors in the
    block, where the image is decoded."""
    name = _name(source)
    try:
        if isinstance(source, RenderedImage):
            source = source.paint()
        if isinstance(source, Image.Image):
            _check_size(source, name, max_pixels)
            yield source
            return
        with _stream(source) as file, Image.open(file, formats=formats) as image:
            _check_size(image, name, max_pixels)
            yield image
    except Refused:
        raise
    except Image.DecompressionBombError as error:  # PIL's own limit, which is above ours
        raise Refused(f"the image {name} is too large, the limit is {max_pixels:,}: {error}", TOO_LARGE) from error
    except UnidentifiedImageError as error:
        why = f"it is none of {', '.join(formats)}, or its header is broken"
        raise Refused(f"the image {name} cannot be read: {why}", UNREADABLE) from error
    except Exception as error:  # for a broken file, PIL's parsers raise errors of nearly any kind
        raise Refused(f"the image {name} cannot be read: {type(error).__name__}: {error}", UNREADABLE) from error


def image_size(source: Source, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height from the header; nothing is decoded. Raises `Refused` as `open_image` does."""
    with opened(source, max_pixels=max_pixels) as image:
        return image.size


def _stream(source: "str | Path | StoredImage"):
    if isinstance(source, StoredImage):
        return io.BytesIO(source.read())
    check_file(source)
    return open(source, "rb")


def _name(source: Source) -> str:
    return "in memory" if isinstance(source, Image.Image | RenderedImage) else str(source)


def check_file(path: "str | Path") -> None:
    """Raise `Refused` if the file of an image is missing, empty or not a regular file. Reading a pipe or a device could
    wait forever."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        refuse_elsewhere(str(path))
        raise Refused(f"the image {path} is missing", MISSING) from error
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeEncodeError) and error.encoding != "utf-8":  # the locale is wrong, not the image
            raise ValueError(
                f"{ascii(str(path))} is no name of a file under this locale, whose encoding is {error.encoding}: set "
                "PYTHONUTF8=1, or a locale with UTF-8"
            ) from error
        refuse_elsewhere(str(path))  # too long for a name
        why = error.strerror if isinstance(error, OSError) else error
        raise Refused(f"the image {short(str(path))} cannot be read: {why}", UNREADABLE) from error
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"the image {path} cannot be read: it is no regular file", UNREADABLE)
    if not found.st_size:
        raise Refused(f"the image {path} cannot be read: it is empty (0 bytes)", UNREADABLE)


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    found = f"the image {name} has {image.width} x {image.height} pixels"
    if image.width * image.height > max_pixels:
        raise Refused(f"{found}, the limit is {max_pixels:,}", TOO_LARGE)
    if max(image.size) > MAX_SIDE:
        raise Refused(f"{found}, the limit of a side is {MAX_SIDE:,}", TOO_LARGE)
    if not min(image.size):
        raise Refused(found, UNREADABLE)


def _turned(image: Image.Image) -> Image.Image:
    """The image turned upright. PIL's own function also writes the EXIF block back, and fails for odd tags."""
    image.load()  # this turns TIFF files
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int | None:
    """The orientation in the EXIF block; None if there is none that can be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # PIL's parser raises any error; viewers ignore a broken block
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB. For 16-bit grey it takes the upper eight bits; PIL would clip the values at
    255, which is white. Raises ``ValueError`` for 32-bit grey."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit grey (mode {image.mode}) does not say what white is: save 8 or 16 bits")
    return image.convert("RGB")


def image_bytes(image: Image.Image) -> bytes:
    """The pixels of an image in memory as it will be read, for hashing. Raises `Refused` as `open_image` does."""
    return f"RGB {image.size}".encode() + open_image(image, max_pixels=LARGEST_LIMIT).tobytes()
