"""Reconstruction targets: what the model predicts about its input images."""

from asvr.models.targets.base import Target, TensorSpec
from asvr.models.targets.build import build_target, check_together
from asvr.models.targets.codes import CodeTarget, build_tokenizer, grids_of, nearest_cells, shares_encoder
from asvr.models.targets.denoising import DenoisingTarget
from asvr.models.targets.ema import move_towards
from asvr.models.targets.embeddings import EmbeddingTarget
from asvr.models.targets.feature_truth import FeatureTruth
from asvr.models.targets.features import ContinuousTarget, FeatureTarget
from asvr.models.targets.masked_features import MaskedFeatureTarget
from asvr.models.targets.masked_latents import MaskedLatentTarget
from asvr.models.targets.positions import Positions
from asvr.models.targets.seen import Seen
from asvr.models.targets.shared_vocabulary import SharedVocabularyTarget
from asvr.models.targets.soft_codes import SoftCodeTarget

__all__ = [
    "CodeTarget",
    "ContinuousTarget",
    "EmbeddingTarget",
    "FeatureTarget",
    "FeatureTruth",
    "MaskedFeatureTarget",
    "MaskedLatentTarget",
    "DenoisingTarget",
    "Positions",
    "Seen",
    "SharedVocabularyTarget",
    "SoftCodeTarget",
    "Target",
    "TensorSpec",
    "build_target",
    "check_together",
    "build_tokenizer",
    "move_towards",
    "grids_of",
    "nearest_cells",
    "shares_encoder",
]
