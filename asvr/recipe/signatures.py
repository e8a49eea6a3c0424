"""Reads the arguments of a constructor, or of another method, from its signature."""

import inspect
import types
import typing
from typing import Any

PLAIN = (bool, int, float, str, list, tuple, dict, type(None))  # values of a config are checked if annotated with these


def constructor_fields(cls) -> tuple[set[str], set[str], bool]:
    """Return the names that a constructor requires, all names that it takes, and whether it takes any name.

    If it has ``**kwargs``, the constructor of the next base class counts too.
    """
    return _fields(_constructors(cls))


def method_fields(cls: type, name: str) -> tuple[set[str], set[str], bool]:
    """The same as `constructor_fields`, for a method."""
    return _fields(_versions(cls, name))


def constructor_parameters(cls) -> tuple[dict[str, inspect.Parameter], bool]:
    """The named parameters of a constructor, in order, and whether it takes any name.

    If it has ``**kwargs``, the parameters of the next base class are included. A class's own parameter replaces one of
    a base class with the same name.
    """
    found: dict[str, inspect.Parameter] = {}
    for function in _constructors(cls):
        parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]
        for p in parameters:
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                found.setdefault(p.name, p)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return found, False
    return found, True


def _fields(functions: list) -> tuple[set[str], set[str], bool]:
    """See `constructor_fields`. functions: a class's own function, then those of its base classes."""
    required, known = set(), set()
    for function in functions:
        parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        required |= {p.name for p in named if p.default is p.empty and p.name not in known}
        known |= {p.name for p in named}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return required, known, False
    return required, known, True


def _constructors(cls) -> list:
    return _versions(cls, "__init__") if inspect.isclass(cls) else [cls]


def _versions(cls: type, name: str) -> list:
    """The definitions of a method in a class and in its base classes."""
    found = [c.__dict__[name] for c in cls.__mro__ if name in c.__dict__]
    return [getattr(method, "__func__", method) for method in found]  # static and class methods have a `__func__`


def annotations(cls) -> dict[str, Any]:
    """Constructor argument -> its annotation, for annotations of plain types only."""
    found = {}
    for constructor in reversed(_constructors(cls)):
        for name, parameter in inspect.signature(constructor).parameters.items():
            found[name] = parameter.annotation
    return {name: hint for name, hint in found.items() if all(kind in PLAIN for kind in _kinds(hint))}


def _kinds(hint) -> list:
    """The types of an annotation: all types of a union, or the one type. For ``list[int]`` it is ``list``."""
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return [typing.get_origin(part) or part for part in parts]


def fits(value: Any, hint) -> bool:
    """Whether a config's value has the annotated type. A whole number counts as a float, and a tuple as a list."""
    kinds = _kinds(hint)
    if isinstance(value, bool):
        return bool in kinds
    wider = {int: (int, float), tuple: (tuple, list), list: (tuple, list)}.get(type(value), ())
    return any(isinstance(value, kind) for kind in kinds) or any(kind in kinds for kind in wider)


def in_words(hint) -> str:
    return hint.__name__ if inspect.isclass(hint) and not typing.get_args(hint) else str(hint)
