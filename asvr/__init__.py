"""Train vision-language models that also reconstruct the semantic visual tokens of what they see.

Importing the package loads neither torch nor transformers; components register on first use.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from asvr.pretrained import Pretrained

__version__ = "0.1.0"


def load(folder: "str | Path", **kwargs) -> "Pretrained":
    """A ready model from its folder or a finished run's work dir; see `asvr.loading.load`."""
    from asvr.loading import load as load_pretrained  # here: importing the package must stay light

    return load_pretrained(folder, **kwargs)


def list_components(kind: str | None = None, pattern: str | None = None, *, inherited: bool = False) -> list:
    """Every registered component as a record; see `asvr.recipe.catalog.list_components`."""
    from asvr.recipe.catalog import list_components as listed

    return listed(kind, pattern, inherited=inherited)


def list_recipes(pattern: str | None = None) -> list:
    """The configs that come with the library; see `asvr.base.recipes.list_recipes`."""
    from asvr.base.recipes import list_recipes as listed

    return listed(pattern)
