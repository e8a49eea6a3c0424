"""Opening pictures."""

from pathlib import Path

from PIL import Image

from asvr.data.refusals import Refused

# What PIL raises for a file that is no picture, cut off, broken or absurdly large.
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def open_image(source: "str | Path | Image.Image") -> Image.Image:
    """A picture in RGB, from its file or itself.

    Raises: `Refused`, naming the file, where it is missing or unreadable.
    """
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise Refused(f"the picture {source} is missing", "missing picture") from error
    except BROKEN as error:
        raise Refused(f"the picture {source} cannot be read: {error}", "unreadable picture") from error


def picture_bytes(image: Image.Image) -> bytes:
    """What a picture in memory shows, as it will be read: its palette is part of that."""
    return f"RGB {image.size}".encode() + image.convert("RGB").tobytes()
