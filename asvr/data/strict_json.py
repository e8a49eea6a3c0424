"""JSON as its standard has it. What Python's parser lets pass beside that is refused."""

import json

from asvr.base.text import short
from asvr.data.image_sources import is_base64
from asvr.data.refusals import Refused

MAX_RECORD_BYTES = 1 << 22  # of text, a million tokens: no row is as long, and its tokens would take gigabytes
MAX_BYTES_WITH_IMAGES = 1 << 26  # of a record with the images that stand in it


def parse_record(text: bytes):
    """The value of one record. Raises `Refused` for what is too large, not UTF-8, not JSON, or nested too deeply; for
    NaN and Infinity, which JSON does not have; and for a key that stands twice, one of whose values would be lost."""
    require_size(len(text))
    try:
        # A byte order mark in front is the file's, or that of one file behind another.
        found = json.loads(text.decode("utf-8-sig"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError as error:
        raise Refused("nested too deeply", "malformed") from error
    except Refused:
        raise
    except ValueError as error:
        raise Refused(f"not JSON in UTF-8: {error}", "malformed") from error
    if len(text) > MAX_RECORD_BYTES and (size := len(text) - _bytes_of_images(found)) > MAX_RECORD_BYTES:
        _refuse_size(size, MAX_RECORD_BYTES)
    return found


def require_size(size: int) -> None:
    """Raise `Refused` for a record of more bytes than are read, whatever is in it."""
    if size > MAX_BYTES_WITH_IMAGES:
        _refuse_size(size, MAX_BYTES_WITH_IMAGES)


def _refuse_size(size: int, limit: int) -> None:
    raise Refused(f"the record has {size:,} bytes, the limit is {limit:,}: split it", "too large a record")


def _bytes_of_images(value) -> int:
    """Of the images that stand in a record, in base64."""
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
        raise Refused(f"the key {short(twice)} stands twice in one object", "malformed")
    return found
