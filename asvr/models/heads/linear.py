"""A linear head: it predicts each depth from the hidden state alone.

Legend: ``P`` visual positions, ``H`` LLM width, ``D`` code depth, ``C`` code width.
"""

from torch import Tensor

from asvr.models.heads.base import Head, classifiers_of
from asvr.registry import HEADS


@HEADS.register_module()
class LinearHead(Head):
    """One linear classifier for each depth, on the hidden state. The depths are predicted independently.

    bias: whether the classifiers have a bias.
    """

    def __init__(self, *, hidden_size: int, codebook_sizes: list[int], code_width: int, bias: bool = True):
        super().__init__()
        self.classifiers = classifiers_of(hidden_size, codebook_sizes, bias=bias)

    def forward(self, hidden_PH: Tensor, vectors_PDC: Tensor) -> Tensor:
        return hidden_PH.unsqueeze(1).expand(-1, len(self.classifiers), -1)
