"""Files of images of every unusual kind, made by hand where PIL cannot write them."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
SMALL = {"png": {}, "jpg": {}, "webp": dict(lossless=True), "bmp": {}, "gif": {}, "tif": {}}  # how each is saved


def encoded(suffix: str, image: Image.Image = COLORS, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, dict(jpg="JPEG", tif="TIFF").get(suffix, suffix.upper()), **SMALL[suffix] | options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *, depth: int, color: int, rows: bytes) -> bytes:
    """depth: bits a channel. color: 0 grey, 2 RGB. rows: each with its filter byte in front."""
    header = struct.pack(">2I5B", width, height, depth, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A few kilobytes that are gigabytes of pixels."""
    return png(width, height, depth=1, color=0, rows=bytes(1000))


def rgb_16(values_HW3: np.ndarray) -> bytes:
    height, width, _ = values_HW3.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HW3)
    return png(width, height, depth=16, color=2, rows=rows)


def animated(suffix: str, frames: list[Image.Image]) -> bytes:
    return encoded(suffix, frames[0], save_all=True, append_images=frames[1:], duration=50)


def write(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name
