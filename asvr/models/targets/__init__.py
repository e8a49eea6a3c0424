"""Reconstruction targets."""

from asvr.models.targets.base import Seen, Target, TensorSpec
from asvr.models.targets.codes import CodeTarget, build_tokenizer, grids_of, nearest_cells, shares_encoder
from asvr.models.targets.ema import move_towards
from asvr.models.targets.positions import Positions
from asvr.models.targets.shared_vocabulary import SharedVocabularyTarget
from asvr.models.targets.soft_codes import SoftCodeTarget

__all__ = [
    "CodeTarget",
    "Positions",
    "Seen",
    "SharedVocabularyTarget",
    "SoftCodeTarget",
    "Target",
    "TensorSpec",
    "build_tokenizer",
    "move_towards",
    "grids_of",
    "nearest_cells",
    "shares_encoder",
]
