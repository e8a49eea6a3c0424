"""Reading a config file with its bases, and saying in one line what is wrong in which of them."""

import ast
import reprlib
import traceback
from pathlib import Path

from mmengine.config import Config

from asvr.base.recipes import list_recipes, recipe_file
from asvr.registry import SCOPE

BASE = "_base_"
DELETE = "_delete_"


def read_config_file(path: str | Path) -> Config:
    """MMEngine's config of a Python file. Raises ``ValueError`` that names the file and the line or the key, whatever
    goes wrong in it or in one of its bases."""
    try:
        cfg = _from_file(path)
        list(cfg.items())  # what the file imports is imported now
        return cfg
    except Exception as error:  # a config is code: anything may come out of it
        raise ValueError(_told(Path(path).absolute(), error)) from error


def _from_file(path: str | Path) -> Config:
    """``asvr::NAME`` in a ``_base_`` is the recipe of that name."""
    from asvr.base.compat import bases_of_package  # here: importing this module must not load torch

    with bases_of_package(SCOPE, recipe_file):
        return Config.fromfile(path, import_custom_modules=False)


def _told(path: Path, error: Exception) -> str:
    problem, files = _problem(path, ())
    if problem is not None:
        return problem
    for file in files[:-1]:  # a base before what stands on it
        try:
            _from_file(file)
        except Exception as own:
            path, error = file, own
            break
    frames = list(traceback.walk_tb(error.__traceback__))
    keys = [str(frame.f_locals["k"]) for frame, _ in frames if frame.f_code.co_name == "_merge_a_into_b"]
    if isinstance(error, TypeError) and keys:
        innermost = frames[-1][0].f_locals
        return (
            f"{path}: {'.'.join(keys)} is a dict here and {reprlib.repr(innermost['b'][keys[-1]])} in its {BASE}: give "
            f"the same kind, or add {DELETE}=True to the dict, which then takes its place"
        )
    lines = [number for frame, number in frames if frame.f_code.co_filename == str(path)]
    place = f"{path}, line {lines[-1]}" if lines else str(path)
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(f"{place}: {type(error).__name__}: {said}".split())


def _problem(path: Path, above: tuple[Path, ...]) -> tuple[str | None, list[Path]]:
    """What is wrong in a file before it runs, or in one of its bases; and these files, a base before what stands on it.
    above: the files that lead here."""
    if path in above:
        return f"{above[-1]}: its {BASE} leads back to {path}", []
    if not path.is_file():
        named = path.stem in [recipe.name for recipe in list_recipes(path.stem)]
        hint = f"; the recipe of that name is {f'{SCOPE}::{path.stem}'!r}" if named else ""
        return f"{above[-1]}: its {BASE} names {path}, and there is no such file{hint}", []
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        return f"{path}, line {error.lineno or 1}: {error.msg}", []
    except ValueError as error:
        return f"{path} is no Python file: {error}", []
    found = []
    try:
        bases = _bases(tree)
    except ValueError as error:
        return f"{path}: its {BASE}: {error}", []
    for base in bases:
        problem, files = _problem((path.parent / base).resolve(), (*above, path))
        if problem is not None:
            return problem, []
        found += files
    return None, [*found, path]


def assigns(path: str | Path, name: str) -> bool:
    """Whether a config file sets the variable ``name`` itself, and not only a base of it."""
    return _assigned(ast.parse(Path(path).read_text(encoding="utf-8")), name) is not None


def _assigned(tree: ast.Module, name: str) -> ast.expr | None:
    """What the first assignment gives to a variable."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node.value
    return None


def _bases(tree: ast.Module) -> list[str]:
    """Files only: ``asvr::NAME`` is the file of a recipe, and ``package::file`` of another package is MMEngine's to
    find. Raises ``ValueError`` for a recipe that is none."""
    if (given := _assigned(tree, BASE)) is None:
        return []
    try:
        value = ast.literal_eval(given)
    except ValueError:
        return []
    names = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    parts = [name.partition("::") for name in names if isinstance(name, str)]
    return [str(recipe_file(name)) if mark else scope for scope, mark, name in parts if not mark or scope == SCOPE]


def misfit(base, given: dict, place: str = "") -> str | None:
    """Why MMEngine does not merge ``given`` over what stands at ``place``; None where it does."""
    for name, value in given.items():
        key = f"{place}.{name}" if place else name
        if isinstance(base, list | tuple):
            if not name.isdigit() or int(name) >= len(base):
                return f"{place} is a list of {len(base)}: expected a number from 0 to {len(base) - 1} and not {name!r}"
            if isinstance(base, tuple) or not isinstance(value, dict):
                return f"{key} is an entry of a list and no dict, and cannot be given alone: give the whole of {place}"
            old = base[int(name)]
        elif name not in base or not isinstance(value, dict) or value.get(DELETE):
            continue
        else:
            old = base[name]
        if not isinstance(old, dict | list | tuple):
            return (
                f"{key} is {reprlib.repr(old)} and not a dict: give the same kind, or, in a config file, a dict with "
                f"{DELETE}=True, which then takes its place"
            )
        if (why := misfit(old, value, key)) is not None:
            return why
    return None
