"""Where an image of a record is: a file, a place in a larger file, what paints it, or the image itself."""

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

URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # a `Path` has one slash of two
# How a PNG, JPEG, GIF or WebP file begins in base64; a name of a file is not as long.
BASE64 = re.compile(r"(data:|iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/=:;,.\s-]{100,}")


class StoredImage:
    """An image inside a larger file, such as a tar or Parquet shard. ``str()`` tells where it is, for messages."""

    def read(self) -> bytes:
        """Its bytes, as a file of its own would hold them."""
        raise NotImplementedError(f"{type(self).__name__} must read its bytes")

    def sha256(self) -> str:
        """SHA-256 in hex of what decides its bytes, found without reading them: the shard's own hash, and the place."""
        raise NotImplementedError(f"{type(self).__name__} must tell its content")


@dataclass(frozen=True)
class InlineImage(StoredImage):
    """An image whose bytes the record itself holds. data: as a file of its own would hold them."""

    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"in the record ({len(self.data):,} bytes)"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its bytes, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    def read(self) -> bytes:
        return self.data

    def sha256(self) -> str:
        return self.digest


@dataclass(frozen=True)
class RenderedImage:
    """An image that is made each time it is opened. content: all that decides it: equal ones are the same image."""

    content: str
    paint: Callable[[], Image.Image]

    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()


Source = str | Path | StoredImage | RenderedImage | Image.Image


def has_file(source: Source) -> bool:
    """Whether it has a file of its own."""
    return isinstance(source, str | Path)


def refuse_elsewhere(name: str) -> None:
    """Raise `Refused` for what names an image that lies in no file here: a URL, or the image itself as text."""
    if name.startswith("data:") or BASE64.match(name):
        raise Refused(
            f"the image {short(name)} stands in the record itself (base64), which is not read: write it to a file, "
            "and the file's name here",
            "inline image",
        )
    if URL.match(name):
        raise Refused(
            f"the image {short(name)} is a URL, and URLs are not read: download it, and write the file's name here",
            "URL",
        )


def is_base64(text: str) -> bool:
    """Whether a text is an image itself, not the name of one."""
    return text.startswith("data:") or BASE64.match(text) is not None


def decode_base64(text: str) -> bytes:
    """The bytes of a ``data:`` URL, or of base64 alone. Raises `Refused` where it is no base64."""
    head, _, body = text.partition(",") if text.startswith("data:") else ("", "", text)
    try:
        if head and not head.endswith(";base64"):
            raise ValueError("expected data:image/png;base64,...")
        return base64.b64decode("".join(body.split()), validate=True)
    except ValueError as error:
        raise Refused(f"the image {short(text)} in the record is not base64: {error}", "inline image") from error
