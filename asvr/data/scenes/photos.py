"""Photographs to make scenes of: those among the stamps of Tux Paint, where Debian's package of them is installed."""

from functools import lru_cache
from pathlib import Path

from PIL import Image

STAMPS = Path("/usr/share/tuxpaint/stamps")  # apt install tuxpaint-stamps-default
GROUPS = {
    "animals": "animal",
    "clothes": "clothing",
    "food": "food",
    "hobbies/music": "instrument",
    "household/tools": "tool",
    "plants": "plant",
    "sports": "sport",
    "town": "building",
    "vehicles": "vehicle",
}
SHADES = 8  # of each channel; a drawing has few of the resulting colours
COLORS = 300


@lru_cache
def photos() -> dict[str, str]:
    """File of a photograph, below ``STAMPS`` -> its group. Raises ``ValueError`` where the package is missing."""
    if not STAMPS.is_dir():
        raise ValueError(f"there is no {STAMPS}: apt install tuxpaint-stamps-default has the photographs")
    found = {}
    for folder, group in GROUPS.items():
        for file in sorted((STAMPS / folder).rglob("*.png")):
            if "cartoon" not in file.name and _is_photo(file):
                found[str(file.relative_to(STAMPS))] = group
    return found


def _is_photo(file: Path) -> bool:
    with Image.open(file) as image:
        shades = image.convert("RGB").point(lambda value: value // SHADES)
    return len(shades.getcolors(shades.width * shades.height)) > COLORS


@lru_cache(maxsize=512)
def photo(name: str) -> Image.Image:
    """The RGBA picture of a photograph, cut to what is there."""
    with Image.open(STAMPS / name) as image:
        picture = image.convert("RGBA")
    return picture.crop(picture.getbbox())
