"""Find the Python files of an lmms-eval task. Its yaml names functions after ``!function``."""

import importlib.util
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path


def task_code(config) -> list[Path]:
    """The Python files of a configuration's functions, and the files beside them, which they may import.

    Nothing is imported to find them. Missing files are ignored here, because lmms-eval reports them.
    """
    return [file for node in _functions(config) for file in _files(node)]


def _functions(config) -> Iterator:
    """The yaml nodes that lmms-eval's simple mode keeps in place of functions."""
    if isinstance(config, dict | list):
        for value in config.values() if isinstance(config, dict) else config:
            yield from _functions(value)
    elif getattr(config, "tag", None) == "!function":
        yield config


def _files(node) -> list[Path]:
    """The files of one function. Like lmms-eval, it looks in the folder of the yaml first, then for a module."""
    module = node.value.rpartition(".")[0]
    beside = Path(node.start_mark.name).parent / f"{module}.py"
    if beside.is_file():
        return sorted(beside.resolve().parent.glob("*.py"))
    origin = _origin(module.split("."))
    if origin is None:
        return []
    return sorted(origin.parent.glob("*.py")) if "." in module else [origin]  # files beside a single module are others'


def _origin(names: list[str]) -> Path | None:
    """The file of a module. Unlike ``find_spec`` of a dotted name, it does not import the packages."""
    if not all(name.isidentifier() for name in names):
        return None
    spec = importlib.util.find_spec(names[0])
    for i in range(1, len(names)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join(names[: i + 1]), spec.submodule_search_locations)
    return Path(spec.origin) if spec is not None and spec.has_location else None
