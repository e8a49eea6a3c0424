"""Reconstruction targets."""

from asvr.models.targets.base import Seen, Target, TensorSpec
from asvr.models.targets.codes import CodeTarget, build_tokenizer, grids_of, nearest_cells, shares_encoder
from asvr.models.targets.denoising import DenoisingTarget
from asvr.models.targets.ema import move_towards
from asvr.models.targets.positions import Positions

__all__ = [
    "CodeTarget",
    "DenoisingTarget",
    "Positions",
    "Seen",
    "Target",
    "TensorSpec",
    "build_tokenizer",
    "move_towards",
    "grids_of",
    "nearest_cells",
    "shares_encoder",
]
