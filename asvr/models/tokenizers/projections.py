"""What stands between an encoder's features and the quantiser in some trained tokenizers.

Legend: ``I`` images, ``N`` visual tokens of an image, ``E`` encoder width, ``C`` code width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

GROUPS, EPS = 32, 1e-6


class ResnetProjection(nn.Module):
    """A residual block of a 1 x 1 and a 3 x 3 convolution over the grid, features_INE -> vectors_INC.

    Matches ``prequant_visual`` and ``prequant_semantic`` of DualToken's first two generations
    (``rqvaesigliptransformer``), whose names it keeps.
    """

    def __init__(self, *, in_width: int, width: int, grid: tuple[int, int]):
        super().__init__()
        self.grid, self.width = grid, width
        self.norm1 = nn.GroupNorm(GROUPS, in_width, eps=EPS)
        self.conv1 = nn.Conv2d(in_width, width, 1)
        self.norm2 = nn.GroupNorm(GROUPS, width, eps=EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_width, width, 1) if in_width != width else None

    def forward(self, features_INE: Tensor) -> Tensor:
        x = features_INE.transpose(1, 2).unflatten(2, self.grid)
        out = self.conv1(F.silu(self.norm1(x)))
        out = self.conv2(F.silu(self.norm2(out)))
        out = out + (x if self.nin_shortcut is None else self.nin_shortcut(x))
        return out.flatten(2).transpose(1, 2)


def build_projection(config: dict, *, in_width: int, grid: tuple[int, int]) -> nn.Module:
    """config: ``dict(type='resnet', width=...)``; ``width`` defaults to the encoder's."""
    config = dict(config)
    kind = config.pop("type", None)
    if kind != "resnet":
        raise ValueError(f"tokenizer.projection.type={kind!r}: expected 'resnet'")
    unknown = config.keys() - {"width"}
    if unknown:
        raise ValueError(f"tokenizer.projection: unknown {sorted(unknown)}; expected type and width")
    width = config.get("width", in_width)
    if in_width % GROUPS or width % GROUPS:
        raise ValueError(f"tokenizer.projection: {in_width} -> {width}, expected multiples of {GROUPS}")
    return ResnetProjection(in_width=in_width, width=width, grid=grid).requires_grad_(False)
