"""JSON as its standard has it. What Python's parser lets pass beside that is refused."""

import json

from asvr.base.text import short
from asvr.data.refusals import Refused

MAX_RECORD_BYTES = 1 << 22  # a million tokens: no row is as long, and its tokens would take gigabytes


def parse_record(text: bytes):
    """The value of one record. Raises `Refused` for what is too large, not UTF-8, not JSON, or nested too deeply; for
    NaN and Infinity, which JSON does not have; and for a key that stands twice, one of whose values would be lost."""
    require_size(len(text))
    try:
        # A byte order mark in front is the file's, or that of one file behind another.
        return json.loads(text.decode("utf-8-sig"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError as error:
        raise Refused("nested too deeply", "malformed") from error
    except Refused:
        raise
    except ValueError as error:
        raise Refused(f"not JSON in UTF-8: {error}", "malformed") from error


def require_size(size: int) -> None:
    if size > MAX_RECORD_BYTES:
        message = f"the record has {size:,} bytes, the limit is {MAX_RECORD_BYTES:,}: split it"
        raise Refused(message, "too large a record")


def _refuse_constant(name: str):
    raise Refused(f"{name} is not JSON: write null, or leave the key out", "malformed")


def _unique(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Refused(f"the key {short(twice)} stands twice in one object", "malformed")
    return found
