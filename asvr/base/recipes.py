"""Recipes: the config files that come with the library.

They are the files of ``configs/``. The name of a recipe is its path there without ``.py``: ``asvr_mini``,
``targets/scenes/asvr``. In a clone the folder is beside the package; in an installed wheel it is inside the package
(setup.py copies it).
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from asvr.base.text import first_sentence, nearest

SHIPPED = "_shipped"  # folder inside the package of a wheel; setup.py uses the same name
CONFIGS = "configs"
EXAMPLES = "examples"
COMMANDS = dict(studies="study", tokenizers="train-tokenizer")  # folder of recipes -> the command for them

COMMAND = re.compile(r"([A-Z_]+=\S+ )*(python|asvr|pip|hf|torchrun) ")  # a line with a command


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """A recipe.

    name: as commands take it. file: its path. summary: the first sentence of its header. command: the `asvr` command
    that runs it."""

    name: str
    file: Path
    summary: str
    command: str


def home() -> Path:
    """The folder with ``configs/`` and ``examples/``: the root of a clone, or a folder inside an installed package."""
    package = Path(__file__).parents[1]
    inside = package / SHIPPED
    return inside if inside.is_dir() else package.parent


def matches(name: str, pattern: str | None) -> bool:
    """Whether a name contains ``pattern``; upper and lower case are equal. With ``*``, ``?`` or ``[`` it is a shell
    pattern for the complete name. None matches every name."""
    if pattern is None:
        return True
    name, pattern = name.lower(), pattern.lower()
    return fnmatch(name, pattern) if any(mark in pattern for mark in "*?[") else pattern in name


def list_recipes(pattern: str | None = None) -> list[RecipeFile]:
    """All recipes whose names match, see `matches`. Files and folders with names that begin with ``_`` are parts of
    recipes and are not listed."""
    root = home() / CONFIGS
    found = []
    for file in sorted(root.rglob("*.py"), key=lambda file: (len(file.relative_to(root).parts) > 1, file)):
        parts = file.relative_to(root).with_suffix("").parts
        name = "/".join(parts)
        if not any(part.startswith("_") for part in parts) and matches(name, pattern):
            command = COMMANDS.get(parts[0], "train")
            found.append(RecipeFile(name=name, file=file, summary=first_sentence(_header(file)), command=command))
    return found


def find_recipe(name: str | Path) -> Path | None:
    """The file of a recipe, or None.

    name: the name; or its end, if only one recipe ends so (``targets_mini`` for ``studies/targets_mini``); or its path
    in a clone, ``configs/NAME.py``. Raises ``ValueError`` if several names have the same end.
    """
    text = Path(name).as_posix()
    if text.startswith(f"{CONFIGS}/"):
        text = text.removeprefix(f"{CONFIGS}/").removesuffix(".py")
    if text.endswith(".py") or Path(name).is_absolute():
        return None
    file = home() / CONFIGS / f"{text}.py"
    if file.is_file():
        return file
    same = [recipe for recipe in list_recipes() if recipe.name.endswith(f"/{text}")]
    if len(same) > 1:
        raise ValueError(f"{text!r} may be {', '.join(recipe.name for recipe in same)}: give the full name")
    return same[0].file if same else None


def recipe_file(name: str) -> Path:
    """Like `find_recipe`, also for a name with ``.py``. Raises ``ValueError`` with the nearest names if none fits."""
    file = find_recipe(name.removesuffix(".py"))
    if file is None:
        raise ValueError(f"there is no recipe {name!r}; {_nearest(name)}")
    return file


def config_file(given: str | Path, what: str = "config") -> Path:
    """The file of a config: a path, or else the name of a recipe, see `find_recipe`. what: its name in messages.

    Raises ``ValueError`` with the nearest names if there is neither.
    """
    path = Path(given)
    if path.is_file():
        return path
    if (file := find_recipe(given)) is not None:
        return file
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the config file (a run's is in its work dir, config.py)")
    if path.suffix:
        raise ValueError(f"there is no {what} file {path}")
    raise ValueError(f"there is no {what} file and no recipe {str(given)!r}; {_nearest(str(given))}")


def _nearest(name: str) -> str:
    return nearest(name, [recipe.name for recipe in list_recipes()])


def _header(file: Path) -> str:
    """The comment at the top of a config, up to its first command."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or COMMAND.match(text):
            break
        lines.append(text)
    return " ".join(lines)
