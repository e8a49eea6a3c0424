"""The pictures of objects that scenes are made of: 487 objects, each in three independent drawings."""

import json
from functools import lru_cache
from pathlib import Path

from PIL import Image

from asvr.data.scenes.photos import photo, photos

FOLDER = Path(__file__).parent / "emoji"
DRAWINGS = ("twemoji", "fluent", "noto")
PHOTO = "photo"


@lru_cache
def _index() -> dict:
    return json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))


@lru_cache
def _sheet(drawing: str) -> Image.Image:
    with Image.open(FOLDER / f"{drawing}.png") as sheet:
        return sheet.convert("RGBA")


@lru_cache
def groups() -> dict[str, str]:
    """Name of an object -> its group, one of nine, in the order of the sheets."""
    return {_spoken(entry["name"]): entry["group"] for entry in _index()["objects"]}


def group_of(name: str) -> str:
    """Of an object, or of a photograph by its file."""
    return groups()[name] if name in groups() else photos()[name]


def _spoken(name: str) -> str:
    return name.replace(" s ", "'s ")


@lru_cache(maxsize=2048)
def sprite(name: str, drawing: str) -> Image.Image:
    """The RGBA picture of an object, cut to what is drawn."""
    if drawing == PHOTO:
        return photo(name)
    cell, columns = _index()["cell"], _index()["columns"]
    row, column = divmod(list(groups()).index(name), columns)
    picture = _sheet(drawing).crop((column * cell, row * cell, (column + 1) * cell, (row + 1) * cell))
    return picture.crop(picture.getbbox())
