"""The images of the web page with their texts: maps over the image, and images that are decoded from codes.

Legend: ``R`` rows and ``C`` columns of the encoder's grid, ``D`` code depth.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageOps

from asvr.demo.maps import TargetMap, ValueMap

COLOURS = "viridis"  # from purple to yellow; its lightness grows with the value, so it reads in grey too
STRENGTH = 0.65  # the opacity of the colours over the image
DARKEST = 96  # the darkest grey of the image below them (of 255): shapes are visible and colours stay readable
MOST_LINES = 40  # a finer grid gets no lines between its cells


@dataclass(frozen=True, kw_only=True)
class Panel:
    """An image of the page. title, caption: plain text beside it. ends: the meaning of the lowest and the highest
    colour; None if the colours are the image's own."""

    image: Image.Image
    title: str
    caption: str = ""
    ends: tuple[str, str] | None = None

    @property
    def alt(self) -> str:
        """The text for readers who cannot see the image."""
        return f"{self.title}: {self.caption}" if self.caption else self.title


def target_panels(seen: Image.Image, maps: list[TargetMap | ValueMap]) -> list[Panel]:
    """The panels of all targets. seen: see `as_seen`.

    A target with codes has two panels for each depth: where the predicted code is right, and its probability. Another
    target has a panel for each of its own maps.
    """
    panels = []
    for own in maps:
        panels += _code_panels(seen, own) if isinstance(own, TargetMap) else _value_panels(seen, own)
    return panels


def _code_panels(seen: Image.Image, own: TargetMap) -> list[Panel]:
    panels, depths = [], own.right_RCD.shape[-1]
    for depth in range(depths):
        right_RC, probability_RC = own.right_RCD[..., depth], own.probability_RCD[..., depth]
        of = f"{own.name} codes, depth {depth + 1} of {depths}" if depths > 1 else f"{own.name} codes"
        cells = int((~np.isnan(right_RC)).sum())
        right = f"The predicted code is right in {int(np.nansum(right_RC))} of {cells} cells."
        certain = f"The model gives its code a probability of {_mean(probability_RC)} on average."
        ends = (("wrong", "right"), ("0 %", "100 %"))
        panels.append(_map(seen, right_RC, 1, title=f"{of}: right or wrong", caption=right, ends=ends[0]))
        panels.append(_map(seen, probability_RC, 1, title=f"{of}: certainty", caption=certain, ends=ends[1]))
    return panels


def _value_panels(seen: Image.Image, own: ValueMap) -> list[Panel]:
    panels = []
    for name, values_RC in own.values_RC.items():
        largest = max(1, np.nanmax(values_RC))
        caption, ends = f"{np.nanmean(values_RC):.3g} on average.", ("0", f"{largest:.3g}")
        panels.append(_map(seen, values_RC, largest, title=f"{own.name}: {name}", caption=caption, ends=ends))
    return panels


def attention_panels(seen: Image.Image, weights_RC: np.ndarray) -> list[Panel]:
    """Two panels: the image, and the attention of the answer to each token of it."""
    share, largest = 100 * np.nansum(weights_RC), 100 * np.nanmax(weights_RC)
    caption = (
        f"{share:.0f} % of the attention is on the image, the rest on the text. Most on one cell: {largest:.2g} %."
    )
    ends = ("0 %", f"{largest:.2g} %")
    return [
        Panel(image=seen, title="The image as the encoder sees it"),
        _map(seen, 100 * weights_RC, largest, title="Attention of the answer", caption=caption, ends=ends),
    ]


def decoded_panels(images: tuple[Image.Image, Image.Image, Image.Image]) -> list[Panel]:
    """`TargetMap.images` side by side."""
    own, true, predicted = images
    caption = f"{own.width} x {own.height} pixels."
    return [
        Panel(image=own, title="What the visual tokenizer sees", caption=caption),
        Panel(image=true, title="Drawn from its own codes", caption="The best that the codes can show."),
        Panel(image=predicted, title="Drawn from the predicted codes", caption="What the model expects to be there."),
    ]


def _map(seen: Image.Image, values_RC: np.ndarray, largest: float, **words) -> Panel:
    """A panel with values over the grey image. A cell without a value (NaN) shows only the image."""
    rows, columns = values_RC.shape
    there_RC = ~np.isnan(values_RC)
    share_RC = np.where(there_RC, values_RC, 0) / (largest or 1)
    colours = Image.fromarray((255 * colormaps[COLOURS](share_RC)[..., :3]).astype(np.uint8))
    strength = Image.fromarray(np.where(there_RC, round(255 * STRENGTH), 0).astype(np.uint8))
    grey = ImageOps.autocontrast(seen.convert("L")).point(lambda v: DARKEST + v * (255 - DARKEST) // 255).convert("RGB")
    size, nearest = grey.size, Image.Resampling.NEAREST
    drawn = Image.composite(colours.resize(size, nearest), grey, strength.resize(size, nearest))
    if max(rows, columns) <= MOST_LINES:
        lines = ImageDraw.Draw(drawn)
        for row in range(1, rows):
            lines.line([(0, row * size[1] / rows), (size[0], row * size[1] / rows)], fill="white")
        for column in range(1, columns):
            lines.line([(column * size[0] / columns, 0), (column * size[0] / columns, size[1])], fill="white")
    return Panel(image=drawn, **words)


def _mean(values: np.ndarray) -> str:
    return f"{100 * np.nanmean(values):.0f} %"
