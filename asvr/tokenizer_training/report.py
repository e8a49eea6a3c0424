"""Plots of a trained tokenizer: statistics of its codes, and reconstructions."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from asvr.base.plots import scale_by_logarithm


def draw_levels(levels: dict[str, list[float]], path: Path) -> None:
    """Plot each of `ResidualQuantizer.statistics` over the levels."""
    titles = dict(usage="codes in use (%)", perplexity="perplexity", relative_error="relative error after the level")
    figure = Figure(figsize=(4 * len(titles), 3), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(titles)), titles.items(), strict=True):
        axes.bar(range(1, len(levels[key]) + 1), levels[key])
        axes.set(title=title, xlabel="level", ylim=(0, None))
    figure.savefig(path, dpi=120)


def draw_reconstructions(original: Tensor, decoded: Tensor, rows: list[dict], path: Path, *, columns: int = 8) -> None:
    """Plot images (I, 3, h, w) in [-1, 1] above their reconstructions, and the training loss over the steps."""
    columns = min(columns, len(original))
    figure = Figure(figsize=(1.2 * columns + 4, 3), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.2 * columns, 4))
    grid = torch.cat([torch.cat(list(row[:columns]), dim=2) for row in (original, decoded)], dim=1)
    left.imshow(((grid + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy())
    left.set(title="originals above reconstructions", xticks=[], yticks=[])
    right.plot([row["step"] for row in rows], [row["loss"] for row in rows])
    right.set(title="training loss", xlabel="step")
    scale_by_logarithm(right)
    figure.savefig(path, dpi=120)
