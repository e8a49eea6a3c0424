"""Projectors: they map features from the encoder's width to the LLM's.

Legend: ``I`` images, ``N`` visual tokens of an image, ``E`` encoder width, ``H`` LLM width.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from asvr.models.component import Component
from asvr.registry import PROJECTORS


@PROJECTORS.register_module()
class LinearProjector(Component):
    """One linear map, features_INE -> visual_INH."""

    def __init__(self, *, in_width: int, out_width: int):
        super().__init__()
        self.linear = nn.Linear(in_width, out_width)

    def forward(self, features_INE: Tensor) -> Tensor:
        return self.linear(features_INE)


@PROJECTORS.register_module()
class MLPProjector(Component):
    """Linear layers with GELU between them, features_INE -> visual_INH.

    layers: number of linear layers; 2 is LLaVA's ``mlp2x_gelu``. norm: whether a layer norm comes first, for encoders
    whose features are not normalised. positions: whether a linear map of position embeddings (sines and cosines of row
    and column) is added, for encoders whose features do not contain the position (convolutions). The tokens must be a
    square.
    """

    def __init__(self, *, in_width: int, out_width: int, layers: int = 2, norm: bool = False, positions: bool = False):
        super().__init__()
        if layers < 2:
            raise ValueError(
                f"MLPProjector layers={layers}: expected at least 2; for one layer use type='LinearProjector'"
            )
        modules = [nn.LayerNorm(in_width)] if norm else []
        modules.append(nn.Linear(in_width, out_width))
        for _ in range(layers - 1):
            modules += [nn.GELU(), nn.Linear(out_width, out_width)]
        self.mlp = nn.Sequential(*modules)
        self.place = nn.Linear(4 * OCTAVES, out_width, bias=False) if positions else None

    def forward(self, features_INE: Tensor) -> Tensor:
        visual_INH = self.mlp(features_INE)
        if self.place is None:
            return visual_INH
        return visual_INH + self.place(places(features_INE.shape[1], visual_INH.device))


OCTAVES = 3


@lru_cache
@torch.inference_mode(False)  # the cached tensor must also work in training, even if inference computed it
def places(num_tokens: int, device: torch.device) -> Tensor:
    """Return (N, 4 * OCTAVES): sines and cosines of row and column. The longest wave is twice the image's side.

    Raises ``ValueError`` if the tokens are not a square.
    """
    side = math.isqrt(num_tokens)
    if side * side != num_tokens:
        raise ValueError(
            f"MLPProjector positions=True: {num_tokens} visual tokens are not a square of rows and columns"
        )
    middles = (torch.arange(side, device=device) + 0.5) / side
    angles = math.pi * middles[:, None] * 2 ** torch.arange(OCTAVES, device=device)
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([waves.repeat_interleave(side, 0), waves.repeat(side, 1)], 1)
