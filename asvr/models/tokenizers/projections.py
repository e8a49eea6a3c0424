"""Networks between an encoder's features and the quantiser, in some imported tokenizers.

Legend: ``I`` images, ``N`` visual tokens of an image, ``E`` encoder width, ``C`` code width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS, EPS = 32, 1e-6


class ResnetProjection(nn.Module):
    """A residual block of a 1 x 1 and a 3 x 3 convolution over the grid, features_INE -> vectors_INC.

    It matches ``prequant_visual`` and ``prequant_semantic`` of DualToken's first two generations
    (``rqvaesigliptransformer``), and keeps their names of weights.
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


class AttentionProjection(nn.Module):
    """One block that changes the width: the sum of attention and a linear map, then a gated MLP.

    Each head is as wide as the narrower of the two sides. If the width shrinks, the heads' outputs are averaged. If it
    grows, they are concatenated. causal: a token attends only to itself and the tokens before it.

    It matches ``AttnProjection`` of DualToken's generation D (``modeling_rqvaesiglip.py``), and keeps its names of
    weights. There, ``prequant_*`` are not causal and ``postquant_*`` are.
    """

    def __init__(self, *, in_width: int, width: int, causal: bool = False):
        super().__init__()
        self.width, self.causal, self.averaged = width, causal, in_width > width
        self.norm1, self.norm3, self.norm2 = nn.LayerNorm(in_width), nn.LayerNorm(in_width), nn.LayerNorm(width)
        self.attn = nn.Module()
        wide, self.head_width = max(in_width, width), min(in_width, width)
        self.attn.qkv = nn.Linear(in_width, 3 * wide, bias=False)
        self.attn.q_bias, self.attn.v_bias = (nn.Parameter(torch.zeros(wide)) for _ in range(2))
        self.attn.register_buffer("zero_k_bias", torch.zeros(wide))
        self.attn.proj = nn.Linear(width, width)
        self.proj = nn.Linear(in_width, width)
        self.mlp = nn.Module()
        self.mlp.norm = nn.LayerNorm(width, eps=EPS)
        self.mlp.w0, self.mlp.w1 = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.mlp.w2 = nn.Linear(2 * width, width)

    def forward(self, features_INE: Tensor) -> Tensor:
        x = self.proj(self.norm3(features_INE)) + self._attend(self.norm1(features_INE))
        hidden = self.mlp.norm(self.norm2(x))
        return x + self.mlp.w2(F.gelu(self.mlp.w0(hidden), approximate="tanh") * self.mlp.w1(hidden))

    def _attend(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.attn.q_bias, self.attn.zero_k_bias, self.attn.v_bias])
        qkv = F.linear(x, self.attn.qkv.weight, bias).unflatten(-1, (3, -1, self.head_width))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out = heads.mean(1) if self.averaged else heads.transpose(1, 2).flatten(2)
        return self.attn.proj(out)


class ShortcutProjection(nn.Module):
    """``main(features of one layer) + weight * shortcut(features of another)``; the input has both, concatenated.

    It matches the pixel branch of DualToken's generation D (``prequant_pix``, ``prequant_shortcut``).
    """

    def __init__(self, main: nn.Module, shortcut: nn.Module, *, weight: float):
        super().__init__()
        self.main, self.shortcut, self.weight, self.width = main, shortcut, weight, main.width

    def forward(self, features_INE: Tensor) -> Tensor:
        first, second = features_INE.chunk(2, dim=-1)
        return self.main(first) + self.weight * self.shortcut(second)


def build_projection(config: dict, *, in_width: int, grid: tuple[int, int]) -> nn.Module:
    """Build a frozen projection.

    config: ``dict(type='resnet', width=...)`` or ``dict(type='attention', width=..., causal=False)``. The default
    ``width`` is the input's. With ``shortcut=WEIGHT`` the input has the features of two layers, concatenated. The
    second layer has its own projection, whose output is added with this weight. Raises ``ValueError`` for other values.
    """
    fields = {"resnet": {"width", "shortcut"}, "attention": {"width", "shortcut", "causal"}}
    options = dict(config)
    kind, weight = options.pop("type", None), options.pop("shortcut", None)
    if kind not in fields:
        raise ValueError(f"projection.type={kind!r}: expected one of {', '.join(fields)}")
    unknown = options.keys() - fields[kind]
    if unknown:
        raise ValueError(f"projection: unknown {sorted(unknown)}; expected type, {', '.join(sorted(fields[kind]))}")
    if weight is not None:
        parts = [build_projection(dict(options, type=kind), in_width=in_width // 2, grid=grid) for _ in range(2)]
        return ShortcutProjection(*parts, weight=weight).requires_grad_(False)
    width = options.pop("width", in_width)
    if kind == "attention":
        if max(width, in_width) % min(width, in_width):
            raise ValueError(f"projection: {in_width} -> {width}: expected one width to be a multiple of the other")
        return AttentionProjection(in_width=in_width, width=width, **options).requires_grad_(False)
    if in_width % GROUPS or width % GROUPS:
        raise ValueError(f"projection: {in_width} -> {width}: expected multiples of {GROUPS}")
    return ResnetProjection(in_width=in_width, width=width, grid=grid).requires_grad_(False)
