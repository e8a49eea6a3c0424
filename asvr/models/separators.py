"""Learned embeddings that separate visual tokens, such as LLaVA-NeXT's newline after each row of cells.

Legend: ``K`` separators in the batch, ``H`` LLM width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Separators(nn.Module):
    """The embeddings of separators: ``forward(kinds_K) -> rows_KH``.

    kinds: the number of different separators. If it is 0, there is no weight. Initial values have a standard deviation
    of ``1 / sqrt(H)``, as ``image_newline`` of the released LLaVA-NeXT.
    """

    def __init__(self, kinds: int, width: int):
        super().__init__()
        if kinds:
            self.weight = nn.Parameter(torch.randn(kinds, width) / width**0.5)

    def forward(self, kinds_K: Tensor) -> Tensor:
        return F.embedding(kinds_K, self.weight)
