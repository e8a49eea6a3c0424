"""The weight of a target's loss: a number, or one that changes in the course of a stage."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Ramp:
    """``begin`` in a stage's first step, then in a straight line to ``end``, which it has in the last step or, with
    ``until`` (a share, above 0 to 1), as much earlier."""

    begin: float
    end: float
    until: float = 1.0

    def at(self, done: float) -> float:
        """done: from 0 in the first step to 1 in the last."""
        return self.begin + (self.end - self.begin) * min(1.0, done / self.until)


def has_weight(weight: float | dict) -> bool:
    """Whether a loss has a weight at any time: the number, or the fields of a `Ramp`."""
    return bool(weight.get("begin") or weight.get("end") if isinstance(weight, dict) else weight)


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def ramp_of(weight: float | dict, key: str) -> Ramp | None:
    """None for a number. Raises ``ValueError``, which names ``key``, for what is neither."""
    if _is_weight(weight):
        return None
    names, given = [field.name for field in fields(Ramp)], dict(weight) if isinstance(weight, dict) else {}
    numbers = all(map(_is_weight, given.values()))
    if {"begin", "end"} <= given.keys() <= set(names) and numbers and 0 < given.get("until", 1) <= 1:
        return Ramp(**given)
    raise ValueError(f"{key}={weight!r}: expected a number from 0 on, or dict(begin=0.0, end=1.0, until=0.5)")
