"""Cross-entropy of a linear classifier that never holds the logits of all rows.

Legend: ``S`` rows, ``H`` width, ``V`` classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Logits held at once: 2**25 float32 = 128 MiB. Rows beyond it are recomputed in the backward pass.
MAX_LOGITS = 2**25


def linear_cross_entropy(
    hidden_SH: Tensor, linear: nn.Linear, target_S: Tensor, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy in nats and the number of rows whose largest logit is the target's,
    both 0-dimensional float32. The softmax is float32 whatever the precision of the matrix product.
    """
    rows = max(1, MAX_LOGITS // linear.out_features)
    if hidden_SH.shape[0] <= rows:
        return _chunk(hidden_SH, linear.weight, linear.bias, target_S, label_smoothing)
    sums = [
        checkpoint(_chunk, h, linear.weight, linear.bias, t, label_smoothing, use_reentrant=False)
        for h, t in zip(hidden_SH.split(rows), target_S.split(rows), strict=True)
    ]
    losses, corrects = zip(*sums, strict=True)
    return torch.stack(losses).sum(), torch.stack(corrects).sum()


def _chunk(hidden_SH, weight, bias, target_S, label_smoothing) -> tuple[Tensor, Tensor]:
    logits_SV = F.linear(hidden_SH, weight, bias).float()
    loss = F.cross_entropy(logits_SV, target_S, reduction="sum", label_smoothing=label_smoothing)
    with torch.no_grad():
        correct = (logits_SV.argmax(-1) == target_S).sum(dtype=torch.float32)
    return loss, correct
