"""Refusals: samples that cannot be used, with the reason."""

from dataclasses import dataclass

from asvr.base.text import printable

POLICIES = ("raise", "skip")


class Refused(ValueError):
    """A sample cannot be used. ``reason`` is a short fixed name; refusals are counted by it.

    The message may quote the record. Control characters, and characters that no file can hold, are escaped in it.
    """

    def __init__(self, message: str, reason: str = "unusable"):
        super().__init__(printable(message))
        self.reason = reason


@dataclass(frozen=True)
class Refusal:
    """The item that takes the place of a refused sample under ``on_error='skip'``."""

    sample_id: str
    reason: str
    message: str


def check_policy(on_error: str) -> str:
    if on_error not in POLICIES:
        raise ValueError(f"on_error={on_error!r} is unknown: expected one of {', '.join(map(repr, POLICIES))}")
    return on_error
