"""Losses of continuous features: how far what a head tells is from what is wanted.

Each gives the sum over positions, so that it can be divided by their number in the whole step.

Legend: ``P`` visual positions, ``I`` images, ``N`` visual tokens of an image, ``E`` width of the features, ``W`` width
of what is told.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asvr.base.precision import full_float32
from asvr.registry import LOSSES


class FeatureLoss(nn.Module):
    """``forward(told_PE, wanted_PE)`` -> the loss summed over ``P``, both in float32.

    of_images: True where tokens of an image are compared with one another. Then it is ``forward(told_INW, wanted_INE,
    there_IN)``, summed over the tokens too; there_IN: which tokens count, bool; None: all of them.
    """

    of_images = False

    def forward(self, told_PE: Tensor, wanted_PE: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must compare what is told with what is wanted")


@LOSSES.register_module()
class CosineLoss(FeatureLoss):
    """One minus the cosine of predicted and wanted features, so that the least loss is 0 (the papers have ``-cos``)."""

    def forward(self, told_PE: Tensor, wanted_PE: Tensor) -> Tensor:
        return (1 - F.cosine_similarity(told_PE, wanted_PE, dim=-1)).sum()


@LOSSES.register_module()
class L1Loss(FeatureLoss):
    """The mean absolute difference of predicted and wanted features."""

    def forward(self, told_PE: Tensor, wanted_PE: Tensor) -> Tensor:
        return (told_PE - wanted_PE).abs().mean(-1).sum()


@LOSSES.register_module()
class MSELoss(FeatureLoss):
    """The mean squared difference of predicted and wanted features."""

    def forward(self, told_PE: Tensor, wanted_PE: Tensor) -> Tensor:
        return (told_PE - wanted_PE).square().mean(-1).sum()


@LOSSES.register_module()
class SmoothL1Loss(FeatureLoss):
    """The Huber loss of features: squared below ``beta``, absolute above it, the mean over the features."""

    def __init__(self, *, beta: float = 1.0):
        super().__init__()
        if beta <= 0:
            raise ValueError(f"loss.beta={beta}: expected a number above 0; for the absolute difference use L1Loss")
        self.beta = beta

    def forward(self, told_PE: Tensor, wanted_PE: Tensor) -> Tensor:
        return F.smooth_l1_loss(told_PE, wanted_PE, reduction="none", beta=self.beta).mean(-1).sum()


@LOSSES.register_module()
class SimilarityLoss(FeatureLoss):
    """Compares how similar the tokens of an image are to each other, in predicted and in wanted features.

    It is the mean squared difference between the cosine similarities of all pairs of tokens of an image, times the
    image's tokens, so that the mean over all tokens is the mean over the images. ``W`` and ``E`` may differ.
    """

    of_images = True

    def forward(self, told_INW: Tensor, wanted_INE: Tensor, there_IN: Tensor | None = None) -> Tensor:
        with full_float32(told_INW.device):  # differences of products near 1
            difference_INN = _similarities(told_INW) - _similarities(wanted_INE)
        square_INN = difference_INN.square()
        if there_IN is None:
            return square_INN.mean(-1).sum()
        pairs_INN = there_IN[:, :, None] & there_IN[:, None, :]
        tokens_I = there_IN.sum(1).clamp(min=1)
        return ((square_INN * pairs_INN).sum((1, 2)) / tokens_I).sum()


def _similarities(vectors_INE: Tensor) -> Tensor:
    unit_INE = F.normalize(vectors_INE.float(), dim=-1)
    return torch.matmul(unit_INE, unit_INE.transpose(1, 2))
