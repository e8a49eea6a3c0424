"""The weight of a target's loss: a constant, or a number that changes during a stage."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Ramp:
    """A weight that changes linearly from ``begin`` in a stage's first step to ``end``.

    until: the share of the stage after which ``end`` is reached, above 0 and up to 1. By default it is the last step.
    """

    begin: float
    end: float
    until: float = 1.0

    def at(self, done: float) -> float:
        """Return the weight. done: 0 in the first step, 1 in the last."""
        return self.begin + (self.end - self.begin) * min(1.0, done / self.until)


def has_weight(weight: float | dict) -> bool:
    """Whether a weight is above 0 at any time. weight: a number, or the fields of a `Ramp`."""
    return bool(weight.get("begin") or weight.get("end") if isinstance(weight, dict) else weight)


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def ramp_of(weight: float | dict, key: str) -> Ramp | None:
    """Return a `Ramp` for a dict, None for a number. Raises ``ValueError``, which names ``key``, for other values."""
    if _is_weight(weight):
        return None
    names, given = [field.name for field in fields(Ramp)], dict(weight) if isinstance(weight, dict) else {}
    numbers = all(map(_is_weight, given.values()))
    if {"begin", "end"} <= given.keys() <= set(names) and numbers and 0 < given.get("until", 1) <= 1:
        return Ramp(**given)
    raise ValueError(f"{key}={weight!r}: expected a number of at least 0, or dict(begin=0.0, end=1.0, until=0.5)")
