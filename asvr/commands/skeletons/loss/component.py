"""A loss of your own for codes.

Legend: P visual positions, D code depth, W head width, V codes of a codebook.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asvr.registry import LOSSES


@LOSSES.register_module()
class MyComponent(nn.Module):
    """Cross-entropy with label smoothing, averaged over depths.

    smoothing: the probability that is spread over all codes, from 0 to below 1.
    """

    def __init__(self, *, smoothing: float = 0.1):
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f"MyComponent smoothing={smoothing}: expected a number from 0 to below 1")
        self.smoothing = smoothing

    def forward(self, states_PDW: Tensor, classifiers: nn.ModuleList, codes_PD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss summed over positions (the model divides it), and the number of right codes by depth (D,)."""
        losses, right = [], []
        for depth, classifier in enumerate(classifiers):
            logits_PV = classifier(states_PDW[:, depth]).float()
            codes_P = codes_PD[:, depth]
            losses.append(F.cross_entropy(logits_PV, codes_P, label_smoothing=self.smoothing, reduction="sum"))
            right.append((logits_PV.argmax(-1) == codes_P).sum(dtype=torch.float32))
        return torch.stack(losses).mean(), torch.stack(right)
