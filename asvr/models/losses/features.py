"""Losses of continuous features: they compare predicted features with target features.

Each returns the sum over positions. The model divides it by the number of positions in the whole step.

Legend: ``P`` visual positions, ``I`` images, ``N`` visual tokens of an image, ``E`` width of the target features, ``W``
width of the predictions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asvr.base.precision import full_float32
from asvr.registry import LOSSES


class FeatureLoss(nn.Module):
    """A loss of features: ``forward(predicted_PE, target_PE)``, both float32, returns the loss summed over ``P``.

    of_images: True if the loss compares the tokens of an image with one another. Then it is ``forward(predicted_INW,
    target_INE, there_IN)``, also summed over tokens. there_IN: which tokens count, bool; None: all of them.
    """

    of_images = False

    def forward(self, predicted_PE: Tensor, target_PE: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} needs a forward() from predictions and targets to a loss")


@LOSSES.register_module()
class CosineLoss(FeatureLoss):
    """One minus the cosine similarity of predicted and target features. Its minimum is 0; the papers use ``-cos``."""

    def forward(self, predicted_PE: Tensor, target_PE: Tensor) -> Tensor:
        return (1 - F.cosine_similarity(predicted_PE, target_PE, dim=-1)).sum()


@LOSSES.register_module()
class L1Loss(FeatureLoss):
    """The mean absolute difference of predicted and target features."""

    def forward(self, predicted_PE: Tensor, target_PE: Tensor) -> Tensor:
        return (predicted_PE - target_PE).abs().mean(-1).sum()


@LOSSES.register_module()
class MSELoss(FeatureLoss):
    """The mean squared difference of predicted and target features."""

    def forward(self, predicted_PE: Tensor, target_PE: Tensor) -> Tensor:
        return (predicted_PE - target_PE).square().mean(-1).sum()


@LOSSES.register_module()
class SmoothL1Loss(FeatureLoss):
    """The smooth L1 loss, as in torch: the mean over the features.

    beta: differences below it are squared, larger ones count linearly.
    """

    def __init__(self, *, beta: float = 1.0):
        super().__init__()
        if beta <= 0:
            raise ValueError(f"loss.beta={beta}: expected a number above 0; use L1Loss for the absolute difference")
        self.beta = beta

    def forward(self, predicted_PE: Tensor, target_PE: Tensor) -> Tensor:
        return F.smooth_l1_loss(predicted_PE, target_PE, reduction="none", beta=self.beta).mean(-1).sum()


@LOSSES.register_module()
class SimilarityLoss(FeatureLoss):
    """Compares how similar an image's tokens are to each other, in the predictions and in the target features.

    For each image it is the mean squared difference between the cosine similarities of all pairs of tokens, times the
    number of tokens. So the mean over all tokens is the mean over the images. ``W`` and ``E`` may differ.
    """

    of_images = True

    def forward(self, predicted_INW: Tensor, target_INE: Tensor, there_IN: Tensor | None = None) -> Tensor:
        with full_float32(predicted_INW.device):  # products near 1 are subtracted, so rounding matters
            difference_INN = _similarities(predicted_INW) - _similarities(target_INE)
        square_INN = difference_INN.square()
        if there_IN is None:
            return square_INN.mean(-1).sum()
        pairs_INN = there_IN[:, :, None] & there_IN[:, None, :]
        tokens_I = there_IN.sum(1).clamp(min=1)
        return ((square_INN * pairs_INN).sum((1, 2)) / tokens_I).sum()


def _similarities(vectors_INE: Tensor) -> Tensor:
    unit_INE = F.normalize(vectors_INE.float(), dim=-1)
    return torch.matmul(unit_INE, unit_INE.transpose(1, 2))
