"""A decoder from the codes of an encoder's features to pixels.

Legend: ``I`` images, ``N`` visual tokens of an image, ``C`` code width.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

from asvr.models.tokenizers.pixel import place_attention
from asvr.models.tokenizers.projections import ResnetProjection, build_projection


class FeatureDecoder(nn.Module):
    """A decoder from code vectors (I, N, C), summed over the depth, to pixels (I, 3, h, w), not clamped.

    projection: see `build_projection`. After it the grid is resized to ``latent_size``. A residual block changes the
    width to ``latent_width``, and a VQGAN's decoder makes an image that is ``2 ** (levels - 1)`` times as large.
    attention_levels: the levels with attention, where 0 is the finest; None: only the coarsest. The other arguments are
    fields of ``JanusVQVAEConfig``.

    It matches ``decode`` of DualToken's ``modeling_rqvaesiglip.py``, in float32. (There, generation A uses bfloat16.)
    """

    def __init__(
        self,
        *,
        width: int,
        grid: tuple[int, int],
        projection: dict,
        latent_size: tuple[int, int],
        latent_width: int,
        base_channels: int,
        channel_multiplier: list[int],
        num_res_blocks: int,
        attention_levels: list[int] | None = None,
    ):
        super().__init__()
        self.grid, self.latent_size = grid, tuple(latent_size)
        self.projection = build_projection(projection, in_width=width, grid=grid)
        self.input = ResnetProjection(in_width=self.projection.width, width=latent_width, grid=self.latent_size)
        config = JanusVQVAEConfig(
            latent_channels=latent_width,
            base_channels=base_channels,
            channel_multiplier=channel_multiplier,
            num_res_blocks=num_res_blocks,
        )
        self.decoder = JanusVQVAEDecoder(config)
        if attention_levels is not None:
            place_attention(self.decoder.up[::-1], config, attention_levels)

    def forward(self, vectors_INC: Tensor) -> Tensor:
        x = self.projection(vectors_INC).transpose(1, 2).unflatten(2, self.grid)
        x = F.interpolate(x, self.latent_size, mode="bilinear")
        x = self.input(x.flatten(2).transpose(1, 2))
        return self.decoder(x.transpose(1, 2).unflatten(2, self.latent_size))
