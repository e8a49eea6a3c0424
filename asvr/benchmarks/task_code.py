"""Where the functions of an lmms-eval task stand: its yaml names them after ``!function``."""

import importlib.util
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path


def task_code(config) -> list[Path]:
    """The Python files of a configuration's functions, each with those beside it, which it may import. Nothing is
    imported to find them; a file that is not there is left to lmms-eval to tell of."""
    return [file for node in _functions(config) for file in _files(node)]


def _functions(config) -> Iterator:
    """The yaml nodes that lmms-eval's simple mode leaves where functions are."""
    if isinstance(config, dict | list):
        for value in config.values() if isinstance(config, dict) else config:
            yield from _functions(value)
    elif getattr(config, "tag", None) == "!function":
        yield config


def _files(node) -> list[Path]:
    """As lmms-eval finds them: from the folder of the yaml that the node stands in, else as a module."""
    module = node.value.rpartition(".")[0]
    beside = Path(node.start_mark.name).parent / f"{module}.py"
    if beside.is_file():
        return sorted(beside.resolve().parent.glob("*.py"))
    origin = _origin(module.split("."))
    if origin is None:
        return []
    return sorted(origin.parent.glob("*.py")) if "." in module else [origin]  # one alone may stand among strangers


def _origin(names: list[str]) -> Path | None:
    """The file of a module, without the import of its packages that ``find_spec`` of a dotted name makes."""
    if not all(name.isidentifier() for name in names):
        return None
    spec = importlib.util.find_spec(names[0])
    for i in range(1, len(names)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join(names[: i + 1]), spec.submodule_search_locations)
    return Path(spec.origin) if spec is not None and spec.has_location else None
