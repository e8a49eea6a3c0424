"""Reads a config file with its bases. An error says in one line what is wrong, and in which file."""

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
    """Read a Python file as MMEngine's config.

    Raises ``ValueError`` that names the file, and the line or the key, for any error in it or in one of its bases."""
    try:
        cfg = _from_file(path)
        list(cfg.items())  # this runs the imports of the file now
        return cfg
    except Exception as error:  # a config is code, so it may raise anything
        raise ValueError(_described(Path(path).absolute(), error)) from error


def _from_file(path: str | Path) -> Config:
    """Read the file. In ``_base_``, ``asvr::NAME`` means the recipe of that name."""
    from asvr.base.compat import bases_of_package  # here: importing this module must not load torch

    with bases_of_package(SCOPE, recipe_file):
        return Config.fromfile(path, import_custom_modules=False)


def _described(path: Path, error: Exception) -> str:
    """One line that says what is wrong, and in which file."""
    problem, files = _problem(path, ())
    if problem is not None:
        return problem
    for file in files[:-1]:  # bases come first
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
            f"{path}: {'.'.join(keys)} is a dict here, but {reprlib.repr(innermost['b'][keys[-1]])} in its {BASE}: "
            f"give the same type, or add {DELETE}=True to the dict to replace the value of the base"
        )
    lines = [number for frame, number in frames if frame.f_code.co_filename == str(path)]
    place = f"{path}, line {lines[-1]}" if lines else str(path)
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(f"{place}: {type(error).__name__}: {said}".split())


def _problem(path: Path, above: tuple[Path, ...]) -> tuple[str | None, list[Path]]:
    """Look for a problem in a file and its bases, without running them.

    Returns the problem, or None, and the files that were read, each after its bases. above: the files whose bases led
    to this one."""
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
        return f"{path} is not a Python file: {error}", []
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
    """Whether a config file itself sets the variable ``name``. A variable of its bases does not count."""
    return _assigned(ast.parse(Path(path).read_text(encoding="utf-8")), name) is not None


def _assigned(tree: ast.Module, name: str) -> ast.expr | None:
    """The expression in the first assignment to a variable, or None."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node.value
    return None


def _bases(tree: ast.Module) -> list[str]:
    """The files in ``_base_``. ``asvr::NAME`` is the file of that recipe. ``package::file`` of another package is left
    out, since MMEngine finds it. Raises ``ValueError`` if there is no such recipe."""
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
    """Why MMEngine cannot merge ``given`` over the value at ``place``, or None if it can."""
    for name, value in given.items():
        key = f"{place}.{name}" if place else name
        if isinstance(base, list | tuple):
            if not name.isdigit() or int(name) >= len(base):
                return f"{place} is a list of {len(base)}: expected a number from 0 to {len(base) - 1}, not {name!r}"
            if isinstance(base, tuple) or not isinstance(value, dict):
                return f"{key}: one entry of a list can only be replaced by a dict: give the whole list {place}"
            old = base[int(name)]
        elif name not in base or not isinstance(value, dict) or value.get(DELETE):
            continue
        else:
            old = base[name]
        if not isinstance(old, dict | list | tuple):
            return (
                f"{key} is {reprlib.repr(old)}, not a dict: give the same type, or, in a config file, add "
                f"{DELETE}=True to the dict to replace the value"
            )
        if (why := misfit(old, value, key)) is not None:
            return why
    return None
