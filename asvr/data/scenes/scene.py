"""One scene: what stands where, as facts, and as a picture.

Objects and one painted word stand on the cells of a square grid, each on a round plate of some colour.
"""

import hashlib
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import PIL
from PIL import Image, ImageDraw, ImageFont

from asvr.data.scenes.sprites import FOLDER, sprite

COLORS = dict(
    red=(214, 40, 40),
    orange=(247, 140, 30),
    yellow=(250, 220, 60),
    green=(60, 160, 70),
    blue=(50, 100, 210),
    purple=(130, 60, 160),
    pink=(250, 150, 190),
    gray=(140, 140, 140),
)
PLACES = ("top left", "top right", "bottom left", "bottom right")  # of a grid of 2 x 2, row by row
POSES = {"upright": 0, "tilted left": 90, "upside down": 180, "tilted right": 270}  # degrees, counter-clockwise
SIZES = dict(small=0.5, large=0.85)  # of a cell
LETTERS = "ABCDEFGHIJKLMNOPRSTUVWXYZ"
BACKGROUNDS = ((250, 250, 245), (235, 240, 250), (240, 250, 235), (250, 240, 230))


@dataclass(frozen=True)
class Thing:
    """An object in a cell. place: number of the cell. pose: which way its head points."""

    name: str
    drawing: str
    place: int
    color: str
    pose: str
    size: str


@dataclass(frozen=True)
class Scene:
    """things: in the order of their places. word: painted in the middle, over the corners of all cells.
    paint: seed of what no question asks for (background, small shifts)."""

    things: tuple[Thing, ...]
    word: str
    paint: int

    def names(self) -> list[str]:
        return [thing.name for thing in self.things]


def make_scene(rng: random.Random, names: list[str], drawings: tuple[str, ...]) -> Scene:
    """Two to four objects, of which two are alike in one scene of three; the rest is drawn independently, so that no
    detail of a scene tells another."""
    count = rng.choice((2, 3, 3, 4))
    chosen = rng.sample(names, count)
    if count > 2 and rng.random() < 0.5:
        chosen[1] = chosen[0]
    rng.shuffle(chosen)
    places = sorted(rng.sample(range(len(PLACES)), count))
    things = tuple(
        Thing(
            name=name,
            drawing=rng.choice(drawings),
            place=place,
            color=rng.choice(list(COLORS)),
            pose=rng.choice(list(POSES)),
            size=rng.choice(list(SIZES)),
        )
        for name, place in zip(chosen, places, strict=True)
    )
    return Scene(things, "".join(rng.choices(LETTERS, k=2)), rng.randrange(2**31))


@cache
def painter() -> str:
    """Stands for all that decides the picture of a scene of drawings: this code, the drawings, the version of PIL."""
    digest = hashlib.sha256(PIL.__version__.encode())
    here = Path(__file__).parent
    for file in (here / "scene.py", here / "sprites.py", *sorted(FOLDER.iterdir())):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def paint(scene: Scene, size: int) -> Image.Image:
    """The picture, ``size`` pixels square."""
    rng = random.Random(scene.paint)
    canvas = Image.new("RGB", (size, size), rng.choice(BACKGROUNDS))
    draw, cell = ImageDraw.Draw(canvas), size // 2
    for thing in scene.things:
        row, column = divmod(thing.place, 2)
        slack = cell // 16
        x, y = (n * cell + cell // 2 + rng.randint(-slack, slack) for n in (column, row))
        radius = round(cell * 0.46)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLORS[thing.color])
        picture = sprite(thing.name, thing.drawing)
        scale = SIZES[thing.size] * cell * 0.85 / max(picture.size)
        shape = tuple(max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize(shape, Image.Resampling.BICUBIC).rotate(POSES[thing.pose], expand=True)
        canvas.paste(picture, (x - picture.width // 2, y - picture.height // 2), picture)
    _write(draw, scene.word, size)
    return canvas


def _write(draw: ImageDraw.ImageDraw, word: str, size: int) -> None:
    """On a white plate in the middle, where no object stands."""
    font = ImageFont.load_default(size * 0.18)
    box = draw.textbbox((size / 2, size / 2), word, font=font, anchor="mm")
    margin = size * 0.02
    draw.rectangle((box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin), fill="white", outline="black")
    draw.text((size / 2, size / 2), word, font=font, fill="black", anchor="mm")
