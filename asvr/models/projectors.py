"""From the encoder's width to the LLM's.

Legend: ``I`` images, ``N`` visual tokens of an image, ``E`` encoder width, ``H`` LLM width.
"""

from torch import Tensor, nn

from asvr.models.component import Component
from asvr.registry import PROJECTORS


@PROJECTORS.register_module()
class LinearProjector(Component):
    """One linear map, features_INE -> visual_INH."""

    def __init__(self, *, in_width: int, out_width: int):
        super().__init__()
        self.linear = nn.Linear(in_width, out_width)

    def forward(self, features_INE: Tensor) -> Tensor:
        return self.linear(features_INE)


@PROJECTORS.register_module()
class MLPProjector(Component):
    """Linear layers with GELU between them, features_INE -> visual_INH; ``layers=2`` is LLaVA's ``mlp2x_gelu``.

    norm: a layer norm in front, for encoders whose features are not normalised.
    """

    def __init__(self, *, in_width: int, out_width: int, layers: int = 2, norm: bool = False):
        super().__init__()
        if layers < 2:
            raise ValueError(
                f"MLPProjector layers={layers}: needs at least 2; for one layer use type='LinearProjector'"
            )
        modules = [nn.LayerNorm(in_width)] if norm else []
        modules.append(nn.Linear(in_width, out_width))
        for _ in range(layers - 1):
            modules += [nn.GELU(), nn.Linear(out_width, out_width)]
        self.mlp = nn.Sequential(*modules)

    def forward(self, features_INE: Tensor) -> Tensor:
        return self.mlp(features_INE)
