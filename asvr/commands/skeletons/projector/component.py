"""A projector of your own: from the encoder's features to embeddings of the LLM.

Legend: I images, N visual tokens of an image, E encoder width, H LLM width.
"""

from torch import Tensor, nn

from asvr.models.component import Component
from asvr.registry import PROJECTORS


@PROJECTORS.register_module()
class MyComponent(Component):
    """A layer norm, and a linear map that a gate multiplies.

    in_width, out_width: E and H, which the library gives. eps: of the layer norm.
    """

    def __init__(self, *, in_width: int, out_width: int, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.LayerNorm(in_width, eps=eps)
        self.gate, self.up = nn.Linear(in_width, out_width), nn.Linear(in_width, out_width)

    def forward(self, features_INE: Tensor) -> Tensor:
        """features_INE -> visual_INH, as many tokens as came in."""
        normed_INE = self.norm(features_INE)
        return self.gate(normed_INE).sigmoid() * self.up(normed_INE)
