"""The weight of a target's loss: a number, or one that changes in the course of a stage."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Ramp:
    """From ``begin`` to ``end`` in a straight line over the first ``until`` (a share, above 0 to 1) of a stage's steps,
    ``end`` from there on."""

    begin: float
    end: float
    until: float = 1.0

    def at(self, done: float) -> float:
        """done: the share of the stage's steps that were taken."""
        return self.begin + (self.end - self.begin) * min(1.0, done / self.until)


def ramp_of(weight: float | dict, key: str) -> Ramp | None:
    """None for a number. Raises ``ValueError``, which names ``key``, for what is neither."""
    if isinstance(weight, int | float) and not isinstance(weight, bool) and weight >= 0:
        return None
    names, given = [field.name for field in fields(Ramp)], dict(weight) if isinstance(weight, dict) else {}
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) and one >= 0 for one in given.values())
    if {"begin", "end"} <= given.keys() <= set(names) and numbers and 0 < given.get("until", 1) <= 1:
        return Ramp(**given)
    raise ValueError(f"{key}={weight!r}: expected a number from 0 on, or dict(begin=0.0, end=1.0, until=0.5)")
