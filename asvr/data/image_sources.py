"""Sources of images: a file, a part of a larger file, a function that paints it, or the image itself."""

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image

from asvr.base.text import short
from asvr.data.refusals import Refused

URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # `Path` reduces two slashes to one
# The beginning of a PNG, JPEG, GIF or WebP file in base64. File names are not so long.
BASE64 = re.compile(r"(data:|iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/=:;,.\s-]{100,}")


class StoredImage:
    """An image inside a larger file, such as a tar or Parquet shard. ``str()`` gives its place, for messages."""

    def read(self) -> bytes:
        """The bytes of the image file."""
        raise NotImplementedError(f"{type(self).__name__} must have read()")

    def sha256(self) -> str:
        """SHA-256 in hex of what decides the bytes: the hash of the shard and the place in it. Reads no bytes."""
        raise NotImplementedError(f"{type(self).__name__} must have sha256()")


@dataclass(frozen=True)
class InlineImage(StoredImage):
    """An image whose bytes stand in the record. data: the bytes of the image file."""

    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"in the record ({len(self.data):,} bytes)"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the bytes, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    def read(self) -> bytes:
        return self.data

    def sha256(self) -> str:
        return self.digest


@dataclass(frozen=True)
class RenderedImage:
    """An image that is generated each time it is opened. content: a text that decides it: equal texts, equal images."""

    content: str
    paint: Callable[[], Image.Image]

    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()


Source = str | Path | StoredImage | RenderedImage | Image.Image


def has_file(source: Source) -> bool:
    """Whether an image has a file of its own."""
    return isinstance(source, str | Path)


def refuse_elsewhere(name: str) -> None:
    """Raise `Refused` if a name is not a file name but a URL, or the image itself in base64."""
    if is_base64(name):
        raise Refused(
            f"the record holds the image {short(name)} itself (base64), which is not read here: write the image to a "
            "file, and the file's name here",
            "inline image",
        )
    if URL.match(name):
        raise Refused(
            f"the image {short(name)} is a URL, and URLs are not read: download it, and write the file's name here",
            "URL",
        )


def is_base64(text: str) -> bool:
    """Whether a text is an image in base64, not a name."""
    return text[:5].lower() == "data:" or BASE64.match(text) is not None


def decode_base64(text: str) -> bytes:
    """The bytes of a ``data:`` URL or of a text in base64. Raises `Refused` if it is not base64."""
    head, _, body = text.partition(",") if text[:5].lower() == "data:" else ("", "", text)
    try:
        if head and not head.endswith(";base64"):
            raise ValueError("expected data:image/png;base64,...")
        return base64.b64decode("".join(body.split()), validate=True)
    except ValueError as error:
        raise Refused(f"the image {short(text)} in the record is not base64: {error}", "inline image") from error
