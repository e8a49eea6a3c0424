"""Strict JSON: what Python's parser accepts beyond the standard is refused."""

import json

from asvr.base.text import short
from asvr.data.image_sources import is_base64
from asvr.data.refusals import Refused

MAX_RECORD_BYTES = 1 << 22  # of text, about a million tokens: no row is so long, and its tokens would take gigabytes
MAX_BYTES_WITH_IMAGES = 1 << 26  # of a record with its base64 images


def parse_record(text: bytes):
    """Parse one record.

    Raises `Refused` for a record that is too large, not UTF-8, not JSON or nested too deeply. NaN and Infinity are
    refused, since JSON does not have them. A key that stands twice is refused, since one of its values would be lost.
    """
    require_size(len(text))
    try:
        # The file may begin with a byte order mark. Files that were joined have one in the middle too.
        found = json.loads(text.decode("utf-8-sig"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError as error:
        raise Refused("the record is nested too deeply: make it flatter", "malformed") from error
    except Refused:
        raise
    except ValueError as error:
        raise Refused(f"the record is not JSON in UTF-8: {error}", "malformed") from error
    if len(text) > MAX_RECORD_BYTES and (size := len(text) - _bytes_of_images(found)) > MAX_RECORD_BYTES:
        _refuse_size(size, MAX_RECORD_BYTES)
    return found


def require_size(size: int) -> None:
    """Raise `Refused` for a record with more bytes than the limit, images included."""
    if size > MAX_BYTES_WITH_IMAGES:
        _refuse_size(size, MAX_BYTES_WITH_IMAGES)


def _refuse_size(size: int, limit: int) -> None:
    raise Refused(f"the record has {size:,} bytes, the limit is {limit:,}: split it", "too large a record")


def _bytes_of_images(value) -> int:
    """The number of bytes of the base64 images in a record."""
    if isinstance(value, str):
        return len(value) if is_base64(value) else 0
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(_bytes_of_images(part) for part in parts)


def _refuse_constant(name: str):
    raise Refused(f"{name} is not JSON: write null, or leave the key out", "malformed")


def _unique(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Refused(f"the key {short(twice)} stands twice in one object: remove one of them", "malformed")
    return found
