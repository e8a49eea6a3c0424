"""Describes a plain field of a config: its allowed values, its default, and what it does."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from asvr.base.text import nearest, short

REQUIRED = object()  # the `default` of a field that a config must have


@dataclass(frozen=True)
class Field:
    """One field of a section.

    expected: what `test` accepts, in words. default: the value that a run uses if the field is left out; None if it
    then has none; `REQUIRED` if the field must be given. The default here is documentation: the code that reads the
    field has it too, and a test compares the two. doc: what the field does, in Markdown.
    """

    expected: str
    test: Callable[[Any], bool]
    default: Any = REQUIRED
    doc: str = ""

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    def but(self, **changes) -> "Field":
        """The same field with another default or text."""
        return replace(self, **changes)


def is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value) -> bool:
    return is_int(value) or isinstance(value, float)


def one_of(*choices, **about) -> Field:
    """A field with one of these values. about: the field's `default` and `doc`, here and below."""

    def test(value) -> bool:
        return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in choices)

    return Field("one of " + ", ".join(map(repr, choices)), test, **about)


def count(low: int = 1, **about) -> Field:
    return Field(f"a whole number, at least {low}", lambda value: is_int(value) and value >= low, **about)


def number(low: float, high: float = float("inf"), *, above: bool = False, **about) -> Field:
    """A field with a number from ``low`` (if ``above``: greater than ``low``) to below ``high``."""
    words = f"a number {'above' if above else 'from'} {low}" + (f" to below {high}" if high < float("inf") else "")

    def test(value) -> bool:
        return is_number(value) and (low < value if above else low <= value) and value < high

    return Field(words, test, **about)


def optional(field: Field, *, default: Any = None, doc: str = "") -> Field:
    """The same field, which may also be None or left out."""
    return Field(f"{field.expected}, or None", lambda value: value is None or field.test(value), default, doc)


def check_fields(key: str, value: Any, fields: dict[str, Field]) -> list[str]:
    """Return the problems of one section: unknown, missing and wrong fields. key: the section's place in the config;
    empty for the whole file."""
    if not isinstance(value, dict):
        return [f"{key}={short(value)}: expected a dict with {', '.join(fields)}"]
    above = f"{key}." if key else ""
    problems = [f"{above}{name}: unknown field; {nearest(name, fields)}" for name in value if name not in fields]
    for name, field in fields.items():
        if name in value and not field.test(value[name]):
            problems.append(f"{above}{name}={short(value[name])}: expected {field.expected}")
        elif name not in value and field.required:
            problems.append(f"{above}{name} is missing: expected {field.expected}")
    return problems
