"""What probes ask about scenes, and from which visual tokens they read it.

===========  ==================================================  =========================================
probe        classes                                             read from
===========  ==================================================  =========================================
``color``    the colour of a plate, one of eight                 the visual tokens on that plate
``what``     the name of an object                               the visual tokens on its plate
``letter``   the left or the right letter, one of 25             the visual tokens on that letter
``count``    the number of objects: two, three or four           all visual tokens
``place``    yes or no: is there an object at the top left, at   all visual tokens
             the top right, ...? One classifier for each place
===========  ==================================================  =========================================

A probe reads the mean of these tokens' states. A token counts by the part of the region that its cell covers. The mean
is used because a plate has several tokens, and their number depends on the encoder. An object's fact may be in any of
its tokens, and the token in the middle of a large object does not show the colour of the plate.

The regions leave out the small random shift of objects (1/32 of the image) and the different widths of letters.

Legend: ``G`` regions of an image, ``N`` visual tokens of an image, ``Q`` rows (a fact and the state that it is read
from).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asvr.data.scenes.scene import COLORS, LETTERS, PLACES, Scene

PROBES = ("color", "what", "letter", "count", "place")
PLATE = 0.23  # the radius of a plate, in widths of the image
LETTER = (0.058, 0.064)  # half the mean width and half the height of a letter
REGIONS = (*PLACES, "left letter", "right letter", "image")
IMAGE = REGIONS.index("image")
POINTS = 16  # for each side of a cell, to measure how much of it a region covers


@dataclass(frozen=True)
class Rows:
    """The rows of one classifier: the scene, the region of `REGIONS` and the class of each."""

    scene_Q: np.ndarray
    region_Q: np.ndarray
    class_Q: np.ndarray


def rows_of(scenes: Sequence[Scene]) -> dict[str, list[Rows]]:
    """The rows of each probe. ``place`` has four classifiers, each other probe has one."""
    things = [(i, thing) for i, scene in enumerate(scenes) for thing in scene.things]
    names = sorted({thing.name for _, thing in things})
    colors = list(COLORS)
    letters = [
        (i, REGIONS.index(region), LETTERS.index(letter))
        for i, scene in enumerate(scenes)
        for region, letter in zip(("left letter", "right letter"), scene.word, strict=True)
    ]
    there = [{thing.place for thing in scene.things} for scene in scenes]
    return dict(
        color=[_rows((i, thing.place, colors.index(thing.color)) for i, thing in things)],
        what=[_rows((i, thing.place, names.index(thing.name)) for i, thing in things)],
        letter=[_rows(letters)],
        count=[_rows((i, IMAGE, len(scene.things)) for i, scene in enumerate(scenes))],
        place=[
            _rows((i, IMAGE, int(place in places)) for i, places in enumerate(there)) for place in range(len(PLACES))
        ],
    )


def _rows(found) -> Rows:
    return Rows(*(np.array(values, dtype=np.int64) for values in zip(*found, strict=True)))


def coverage(grid: tuple[int, int]) -> np.ndarray:
    """(G, N): the part of each cell that each of `REGIONS` covers. grid: rows and columns of cells."""
    rows, columns = grid
    y, x = np.meshgrid(*((np.arange(POINTS * side) + 0.5) / (POINTS * side) for side in grid), indexing="ij")
    middles = [((place % 2) / 2 + 0.25, (place // 2) / 2 + 0.25) for place in range(len(PLACES))]
    inside = [(x - across) ** 2 + (y - down) ** 2 <= PLATE**2 for across, down in middles]
    half_width, half_height = LETTER
    for across in (0.5 - half_width, 0.5 + half_width):
        inside.append((abs(x - across) <= half_width) & (abs(y - 0.5) <= half_height))
    inside.append(np.ones_like(x, dtype=bool))
    cells = np.stack(inside).reshape(len(REGIONS), rows, POINTS, columns, POINTS)
    return cells.mean((2, 4)).reshape(len(REGIONS), rows * columns)


def asked_place(question: str) -> int | None:
    """The number of the place that a question names, or None."""
    found = [number for number, place in enumerate(PLACES) if f"at the {place}" in question]
    return found[0] if len(found) == 1 else None
