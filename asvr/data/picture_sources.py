"""Where a picture of a record is: a file, a place in a larger file, what paints it, or the picture itself."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


class StoredPicture:
    """A picture inside a larger file, such as a tar or Parquet shard. ``str()`` tells where it is, for messages."""

    def read(self) -> bytes:
        """Its bytes, as a file of its own would hold them."""
        raise NotImplementedError(f"{type(self).__name__} must read its bytes")

    def sha256(self) -> str:
        """SHA-256 in hex of what decides its bytes, found without reading them: the shard's own hash, and the place."""
        raise NotImplementedError(f"{type(self).__name__} must tell its content")


@dataclass(frozen=True)
class Painted:
    """A picture that is made each time it is opened. content: all that decides it: equal ones are the same picture."""

    content: str
    paint: Callable[[], Image.Image]

    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()


Source = str | Path | StoredPicture | Painted | Image.Image


def has_file(source: Source) -> bool:
    """Whether it has a file of its own."""
    return isinstance(source, str | Path)
