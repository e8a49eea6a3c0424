"""A projector of your own. It maps the encoder's features to embeddings of the LLM.

Legend: I images, N visual tokens of an image, E encoder width, H LLM width.
"""

from torch import Tensor, nn

from asvr.models.component import Component
from asvr.registry import PROJECTORS


@PROJECTORS.register_module()
class MyComponent(Component):
    """A layer norm, and then a linear map multiplied by a gate.

    in_width, out_width: E and H; the library gives them. eps: the epsilon of the layer norm.
    """

    def __init__(self, *, in_width: int, out_width: int, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.LayerNorm(in_width, eps=eps)
        self.gate, self.up = nn.Linear(in_width, out_width), nn.Linear(in_width, out_width)

    def forward(self, features_INE: Tensor) -> Tensor:
        """features_INE -> visual_INH, with the same number of tokens."""
        normed_INE = self.norm(features_INE)
        return self.gate(normed_INE).sigmoid() * self.up(normed_INE)
