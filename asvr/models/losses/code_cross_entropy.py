"""Cross-entropy of visual codes, depth by depth.

Legend: ``P`` supervised visual positions, ``D`` code depth, ``W`` head width, ``K`` codes that share a target.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from asvr.models.losses.linear_cross_entropy import linear_cross_entropy
from asvr.registry import LOSSES


@LOSSES.register_module()
class CodeCrossEntropy(nn.Module):
    """Cross-entropy of codes: the weighted mean over depths, ``sum_d w_d CE_d / sum_d w_d``, summed over positions.

    depth_weights: one weight for each depth. None gives all depths the same weight, as the released code's
    ``(1/8) sum_d CE`` does (``asvr/model/language_model/asvr_llama.py``).
    label_smoothing: the probability that is spread over all codes, in [0, 1).
    """

    def __init__(self, *, depth_weights: list[float] | None = None, label_smoothing: float = 0.0):
        super().__init__()
        if depth_weights is not None and (min(depth_weights) < 0 or sum(depth_weights) <= 0):
            raise ValueError(f"loss.depth_weights={depth_weights}: expected weights >= 0 with a sum > 0")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"loss.label_smoothing={label_smoothing}: expected a number in [0, 1)")
        self.depth_weights = depth_weights
        self.label_smoothing = label_smoothing

    def forward(
        self,
        states_PDW: Tensor,
        classifiers: Sequence[nn.Module],
        codes_PD: Tensor,
        soft: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss summed over positions (nats), and the number of right codes at each depth (D,).

        soft: ids_PDK and shares_PDK, for soft labels. ids_PDK are the codes that share the target of a depth, and
        shares_PDK is the share of each. The first of the K codes is the one in ``codes_PD``. None: hard labels, the
        code in ``codes_PD`` is the whole target.
        """
        weights = self.depth_weights or [1.0] * len(classifiers)
        if len(weights) != len(classifiers):
            raise ValueError(
                f"loss.depth_weights has {len(weights)} entries, the codes have depth {len(classifiers)}: give one "
                "weight for each depth"
            )
        losses, corrects = [], []
        for d, classifier in enumerate(classifiers):
            target, shares = (codes_PD[:, d], None) if soft is None else (soft[0][:, d], soft[1][:, d])
            loss, correct = linear_cross_entropy(
                states_PDW[:, d], classifier, target, shares_SK=shares, label_smoothing=self.label_smoothing
            )
            losses.append(weights[d] * loss)
            corrects.append(correct)
        return torch.stack(losses).sum() / sum(weights), torch.stack(corrects)
