"""Figures of the token maps that `asvr.evaluation.maps` computes.

Legend: ``R`` rows and ``C`` columns of the encoder's grid, ``D`` code depth.
"""

import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from asvr.base.plots import plain
from asvr.evaluation.maps import TargetMap, ValueMap

COLUMNS = 4
WIDTH, BAR = 10.0, 1.0  # inches: the width of a figure, and of the colour bar in it
DPI = 110
FONT = 11


def draw_targets(seen: Image.Image, maps: list[TargetMap | ValueMap]) -> Figure:
    """Draw the maps of all targets over the image. seen: see `as_seen`.

    A target with codes has two panels for each depth: where the predicted code is right, and its probability. Other
    targets have a panel for each of their own maps.
    """
    panels = []  # title, values, the largest value of the scale for codes, else None
    for own in maps:
        if isinstance(own, ValueMap):
            panels += [(f"{plain(own.name)}\n{plain(name)}", values, None) for name, values in own.values_RC.items()]
            continue
        for depth in range(own.right_RCD.shape[-1]):
            right_RC, probability_RC = own.right_RCD[..., depth], own.probability_RCD[..., depth]
            name = f"{plain(own.name)}, depth {depth + 1}"
            panels.append((f"{name}\n{_percent(right_RC)} right", right_RC, 1))
            panels.append((f"{name}\n{_percent(probability_RC)} sure", probability_RC, 1))
    figure, axes = _panels(len(panels))
    of_codes = []
    for axis, (title, values_RC, largest) in zip(axes, panels, strict=True):
        shown = _overlay(axis, seen, values_RC, title, largest=largest or max(1, np.nanmax(values_RC)))
        if largest:
            of_codes.append((shown, axis))
        else:  # it has a scale of its own
            figure.colorbar(shown, ax=axis, fraction=0.046)
    if of_codes:
        bar = figure.colorbar(of_codes[0][0], ax=[axis for _, axis in of_codes], ticks=[0, 0.5, 1], fraction=0.02)
        bar.ax.set_yticklabels(["wrong,\nunsure", "", "right,\nsure"], fontsize=FONT)
    return figure


def as_image(figure: Figure) -> Image.Image:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=DPI)
    return Image.open(stream)


def _panels(count: int) -> tuple[Figure, list]:
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    panel = (WIDTH - BAR) / max(columns, 3)
    figure = Figure(figsize=(panel * columns + BAR, (panel + 0.4) * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def _overlay(axis, seen: Image.Image, values_RC: np.ndarray, title: str, *, largest: float):
    """Draw values over the grey image. Where a value is NaN, only the image is seen."""
    axis.imshow(seen.convert("L").convert("RGB"))
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=FONT)
    area = (-0.5, seen.width - 0.5, seen.height - 0.5, -0.5)
    return axis.imshow(values_RC, extent=area, vmin=0, vmax=largest, cmap="viridis", alpha=0.65)


def _percent(values: np.ndarray) -> str:
    return f"{100 * np.nanmean(values):.0f} %"
