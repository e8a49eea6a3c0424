"""Losses: pure functions of predictions and targets that return sums; the model normalises them."""

from asvr.models.losses.code_cross_entropy import CodeCrossEntropy
from asvr.models.losses.linear_cross_entropy import changed_logits, linear_cross_entropy

__all__ = ["CodeCrossEntropy", "changed_logits", "linear_cross_entropy"]
