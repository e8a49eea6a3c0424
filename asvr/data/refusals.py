"""A sample that cannot be used: why, and what is done about it."""

from dataclasses import dataclass

from asvr.base.text import printable

POLICIES = ("raise", "skip")


class Refused(ValueError):
    """A sample that cannot be used. ``reason`` is a short fixed name, by which refusals are counted.

    The message may quote what a record holds: what a terminal would obey, or no file can hold, is escaped in it.
    """

    def __init__(self, message: str, reason: str = "unusable"):
        super().__init__(printable(message))
        self.reason = reason


@dataclass(frozen=True)
class Refusal:
    """What stands in the place of a refused sample under ``on_error='skip'``."""

    sample_id: str
    reason: str
    message: str


def check_policy(on_error: str) -> str:
    if on_error not in POLICIES:
        raise ValueError(f"on_error={on_error!r} is unknown: expected one of {POLICIES}")
    return on_error
