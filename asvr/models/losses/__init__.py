"""Losses: they compare predictions with targets and return sums. The model normalises the sums."""

from asvr.models.losses.code_cross_entropy import CodeCrossEntropy
from asvr.models.losses.features import CosineLoss, FeatureLoss, L1Loss, MSELoss, SimilarityLoss, SmoothL1Loss
from asvr.models.losses.linear_cross_entropy import JoinedClassifier, changed_logits, linear_cross_entropy

__all__ = [
    "CodeCrossEntropy",
    "CosineLoss",
    "FeatureLoss",
    "JoinedClassifier",
    "L1Loss",
    "MSELoss",
    "SimilarityLoss",
    "SmoothL1Loss",
    "changed_logits",
    "linear_cross_entropy",
]
