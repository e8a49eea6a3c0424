"""An encoder that joins several encoders, each with its own transform.

Legend: ``I`` images, ``N`` visual tokens of an image, ``E`` encoder width.
"""

import itertools
import logging
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asvr.base.log_once import log_once
from asvr.data.transforms import JoinedTransform
from asvr.models.component import portable_of
from asvr.models.encoders.base import grids_of
from asvr.models.encoders.composite import CompositeEncoder, run_part
from asvr.registry import ENCODERS

JOINS = ("channel", "sequence", "add")
RESAMPLING = ("bilinear", "bicubic", "area")


@ENCODERS.register_module()
class MultiEncoder(CompositeEncoder):
    """Several encoders that see the same image, each through its own transform. Their features are joined.

    encoders: configs of encoders.
    join: ``channel``: the features are concatenated, so the widths add up (Eagle, https://arxiv.org/abs/2408.15998).
        ``add``: the features are summed. ``sequence``: the tokens of the encoders follow one another. Each encoder then
        has its own channels, which are zero in the tokens of the others, so the widths add up too. The projector's
        first layer then has one matrix for each encoder, and this class needs no weights.
    resample: ``bilinear``, ``bicubic`` or ``area``: the features are resampled to the first encoder's grid. None: with
        ``channel`` and ``add`` the grids must agree.

    Attribute grids: with ``sequence`` the grids of all encoders, otherwise one grid.

    Raises ``ValueError`` if grids or widths do not fit, or if the number of an encoder's tokens depends on the image.
    """

    def __init__(
        self, *, encoders: list[dict], join: str = "channel", resample: str | None = None, load_weights: bool = True
    ):
        super().__init__()
        if join not in JOINS:
            raise ValueError(f"MultiEncoder join={join!r}: expected one of {', '.join(map(repr, JOINS))}")
        if len(encoders) < 2:
            raise ValueError(f"MultiEncoder encoders: {len(encoders)} given, expected at least 2")
        built = [ENCODERS.build(config, default_args=dict(load_weights=load_weights)) for config in encoders]
        self.encoders, self.join = nn.ModuleList(built), join
        for i, part in enumerate(built):
            if hasattr(part.transform, "grid_of"):
                raise ValueError(
                    f"MultiEncoder encoders[{i}]: {type(part).__name__} reads images in their own resolution, so its "
                    "tokens cannot be joined with those of others: use an encoder with a fixed image size"
                )
        self.grids = [grid for part in built for grid in grids_of(part)] if join == "sequence" else grids_of(built[0])
        self.grid, self.resample = self.grids[0], _check_grids(built, join, resample)
        widths = [part.width for part in built]
        if join == "add" and len(set(widths)) > 1:
            raise ValueError(f"MultiEncoder join='add': the encoders' widths must agree, but they are {widths}")
        self.width = widths[0] if join == "add" else sum(widths)
        distinct = []  # encoders with the same transform share its pixels
        for part in built:
            distinct += [] if part.transform in distinct else [part.transform]
        self.views = [str(distinct.index(part.transform)) for part in built]
        self.transform = JoinedTransform(tuple(distinct))
        _warn_of_crops(distinct, join)
        self.note_sources()

    @property
    def num_tokens(self) -> int:
        return sum(prod(grid) for grid in self.grids)

    @property
    def layer(self) -> dict:
        """What the description of a tokenizer says about this encoder if it is fitted on its features."""
        layers = [getattr(part, "layer", None) for part in self.encoders]
        return dict(join=self.join, resample=self.resample, layers=layers)

    def inner(self) -> dict[str, nn.Module]:
        return {f"encoders.{i}": part for i, part in enumerate(self.encoders)}

    def forward(self, pixels: dict) -> Tensor:
        """Return features_INE. pixels: the output of `JoinedTransform`."""
        features = [run_part(part, part, pixels[view]) for part, view in zip(self.encoders, self.views, strict=True)]
        if self.join == "sequence":
            ends = itertools.accumulate(part.width for part in self.encoders)
            places = [(end - own.shape[2], self.width - end) for own, end in zip(features, ends, strict=True)]
            return torch.cat([F.pad(own, place) for own, place in zip(features, places, strict=True)], 1)
        features = [self._on_grid(own, part.grid) for own, part in zip(features, self.encoders, strict=True)]
        return torch.cat(features, -1) if self.join == "channel" else sum(features[1:], features[0])

    def _on_grid(self, features_INE: Tensor, grid: tuple[int, int]) -> Tensor:
        if tuple(grid) == self.grid:
            return features_INE
        maps = features_INE.float().transpose(1, 2).unflatten(2, grid)
        found = F.interpolate(maps, self.grid, mode=self.resample)
        return found.flatten(2).transpose(1, 2).to(features_INE.dtype)

    def portable(self, config: dict) -> dict:
        parts = zip(self.encoders, config["encoders"], strict=True)
        return dict(super().portable(config), encoders=[portable_of(part, own) for part, own in parts])


def _warn_of_crops(transforms: list, join: str) -> None:
    crops = {getattr(transform, "center_crop", False) for transform in transforms}
    if len(crops) > 1 and join != "sequence":
        log_once(
            logging.WARNING,
            "MultiEncoder join=%r: some encoders crop the image and others do not, so with image_aspect='square' a "
            "cell does not show the same place: set transform=dict(center_crop=False) in those that crop",
            join,
        )


def _check_grids(encoders: list, join: str, resample: str | None) -> str | None:
    """Return ``resample``, or None if it is not needed. Raises ``ValueError`` if the grids do not fit."""
    if resample is not None and resample not in RESAMPLING:
        raise ValueError(
            f"MultiEncoder resample={resample!r}: expected one of {', '.join(map(repr, RESAMPLING))}, or None"
        )
    if join == "sequence":
        if resample is not None:
            raise ValueError(f"MultiEncoder resample={resample!r}: join='sequence' keeps each grid; leave it out")
        return None
    several = [i for i, encoder in enumerate(encoders) if len(grids_of(encoder)) > 1]
    if several:
        raise ValueError(
            f"MultiEncoder encoders[{several[0]}] has several grids, but join={join!r} needs one: use join='sequence'"
        )
    grids = [tuple(encoder.grid) for encoder in encoders]
    if len(set(grids)) > 1 and resample is None:
        listing = " and ".join("x".join(map(str, grid)) for grid in dict.fromkeys(grids))
        raise ValueError(
            f"MultiEncoder join={join!r}: the encoders' grids are {listing}: choose sizes that agree, or set "
            "resample='bilinear' (features are resampled to the first encoder's grid)"
        )
    if len(set(grids)) == 1 and resample is not None:
        log_once(logging.WARNING, "MultiEncoder resample=%r has no effect: all grids are %dx%d", resample, *grids[0])
    return resample
