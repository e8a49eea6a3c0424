"""Figures of the demo: attention and decoded images; token maps are drawn by `asvr.evaluation.drawing`."""

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from asvr.evaluation.drawing import FONT, as_picture, draw_overlay, draw_picture, draw_targets, new_panels

__all__ = ["as_picture", "draw_attention", "draw_pictures", "draw_targets"]


def draw_attention(seen: Image.Image, weights_RC: np.ndarray) -> Figure:
    """The picture, and beside it how much the answer looks at each token of it."""
    figure, (plain, axis) = new_panels(2)
    draw_picture(plain, seen, "as the encoder sees it")
    title = f"attention: {100 * weights_RC.sum():.0f} % is on the picture"
    shown = draw_overlay(axis, seen, 100 * weights_RC, title, largest=100 * weights_RC.max())
    figure.colorbar(shown, ax=axis, fraction=0.046).set_label("% on a token", fontsize=FONT)
    return figure


def draw_pictures(pictures: tuple[Image.Image, Image.Image, Image.Image]) -> Figure:
    """`TargetMap.pictures` side by side."""
    figure, axes = new_panels(3)
    original = f"what the tokenizer sees: {pictures[0].width} x {pictures[0].height}"
    titles = (original, "from its true codes", "from the predicted codes")
    for axis, image, title in zip(axes, pictures, titles, strict=True):
        draw_picture(axis, image, title)
    return figure
