"""Depth transformers: heads that predict the codes of one visual token autoregressively, depth by depth.

Legend: ``P`` visual positions, ``H`` LLM width, ``D`` code depth, ``C`` code width, ``W`` head width,
``F`` feed-forward width (2 W).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asvr.models.attention_kernels import sdpa
from asvr.models.checkpointing import AUTO, check_mode, run_block, run_in_chunks
from asvr.models.heads.base import Head, classifiers_of
from asvr.registry import HEADS

EPS = 1e-6
# With full activation checkpointing, so many positions are recomputed at a time. Each chunk reads the weights once and
# writes their gradients; on CUDA the chunks are large enough that the matrix products take longer than this.
POSITIONS = dict(cpu=512, cuda=8192)


class DepthFeedForward(nn.Module):
    """Linear, GELU, linear. Each depth has its own weights."""

    def __init__(self, *, width: int, depth: int):
        super().__init__()
        self.up_DFW = nn.Parameter(torch.randn(depth, 2 * width, width) * width**-0.5)
        self.down_DWF = nn.Parameter(torch.randn(depth, width, 2 * width) * (2 * width) ** -0.5)

    def forward(self, x_PDW: Tensor) -> Tensor:
        hidden_DPF = F.gelu(torch.bmm(x_PDW.transpose(0, 1), self.up_DFW.mT))
        return torch.bmm(hidden_DPF, self.down_DWF.mT).transpose(0, 1)


class DepthLayer(nn.Module):
    """Causal attention over depth, then the feed-forward of each depth. A norm comes before each of the two."""

    def __init__(self, *, width: int, depth: int, num_heads: int, residual_from_norm: bool):
        super().__init__()
        self.num_heads = num_heads
        self.attention_kernel = sdpa  # `asvr.models.attention.use_attention` may set another
        self.residual_from_norm = residual_from_norm
        self.norm1 = nn.RMSNorm(width, eps=EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.RMSNorm(width, eps=EPS)
        self.feed_forward = DepthFeedForward(width=width, depth=depth)

    def forward(self, x_PDW: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x_PDW)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (P, heads, D, W / heads)
        mixed = self.attention_kernel(q, k, v, segments=None, causal=True, window=None, scale=None)
        x_PDW = x_PDW + self.out(mixed.flatten(2))
        normed = self.norm2(x_PDW)
        return (normed if self.residual_from_norm else x_PDW) + self.feed_forward(normed)


@HEADS.register_module()
class DepthTransformerHead(Head):
    """A small causal transformer over depth. It predicts the codes of a token one after another.

    Its inputs are the projected hidden state, then the running sums of the code vectors of the depths before:
    ``[z, in(e1), in(e1 + e2), ...]``. There is no positional embedding: each depth has its own feed-forward weights
    and its own classifier.

    width: ``W``, a multiple of num_heads. layers: number of blocks. num_heads: number of attention heads.
    activation_checkpointing: ``none``, ``selective``, ``full`` or ``auto``, see `asvr.models.checkpointing`. ``full``
        keeps only the inputs of the whole head, and recomputes the head in chunks of positions.
    """

    residual_from_norm = False

    def __init__(
        self,
        *,
        hidden_size: int,
        codebook_sizes: list[int],
        code_width: int,
        width: int = 2048,
        layers: int = 3,
        num_heads: int = 16,
        activation_checkpointing: str = "none",
    ):
        super().__init__()
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"head.width={width} is not divisible by head.num_heads={num_heads}")
        self.activation_checkpointing = check_mode(activation_checkpointing, "head.activation_checkpointing", auto=True)
        depth = len(codebook_sizes)
        self.input = nn.Sequential(nn.Linear(hidden_size, width), nn.GELU(), nn.Linear(width, width))
        self.code_input = nn.Linear(code_width, width)
        self.layers = nn.ModuleList(
            DepthLayer(width=width, depth=depth, num_heads=num_heads, residual_from_norm=self.residual_from_norm)
            for _ in range(layers)
        )
        self.norm = nn.RMSNorm(width, eps=EPS)
        self.classifiers = classifiers_of(width, codebook_sizes)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, hidden_PH: Tensor, vectors_PDC: Tensor) -> Tensor:
        if self.activation_checkpointing in ("full", AUTO) and self.training and torch.is_grad_enabled():
            positions = POSITIONS["cpu" if hidden_PH.device.type == "cpu" else "cuda"]
            return run_in_chunks(partial(self.states, mode="none"), (hidden_PH, vectors_PDC), positions)
        return self.states(hidden_PH, vectors_PDC, mode=self.activation_checkpointing)

    def states(self, hidden_PH: Tensor, vectors_PDC: Tensor, *, mode: str) -> Tensor:
        """Return states_PDW. mode: the activation checkpointing of each layer."""
        sums_PDC = vectors_PDC[:, :-1].cumsum(1)
        x_PDW = torch.cat([self.input(hidden_PH).unsqueeze(1), self.code_input(sums_PDC)], dim=1)
        x_PDW = x_PDW.to(self.norm.weight.dtype)  # under autocast the residual stream stays in the weights' precision
        for layer in self.layers:
            x_PDW = run_block(layer, x_PDW, mode)
        return self.norm(x_PDW)


@HEADS.register_module()
class ReleasedHead(DepthTransformerHead):
    """The head of the paper's released code, with its peculiarities.

    It is the class RQTransformer of ``rqtransformer/modeling_rqtransformer.py``. Its peculiarities:

    - The second residual connection adds the feed-forward's output to the *normed* tensor, not to the layer's input.
    - Each layer has two feed-forward biases that are never used. They are kept as frozen parameters, so that sizes and
      checkpoints agree.
    - There is no positional embedding. The inputs are cumulative sums of code vectors.
    """

    residual_from_norm = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        for layer in self.layers:
            width = layer.out.out_features
            layer.unused_bias1 = nn.Parameter(torch.zeros(2 * width), requires_grad=False)
            layer.unused_bias2 = nn.Parameter(torch.zeros(width), requires_grad=False)
