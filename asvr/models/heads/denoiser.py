"""A diffusion transformer that predicts the noise in an image's latents, from the LLM's hidden states of the image.

Legend: ``I`` images, ``K`` noisy versions of each image, ``N`` visual tokens of an image, ``C`` latents of a token,
``H`` LLM width, ``W`` head width, ``S`` diffusion steps.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asvr.models.component import Component

EPS = 1e-6
FREQUENCIES = 256  # sines and cosines of a timestep
PERIOD = 10000


class DenoiserBlock(nn.Module):
    """A transformer block with adaLN-Zero (https://arxiv.org/abs/2212.09748): attention over an image's tokens, then a
    feed-forward.

    The condition of each token gives a shift, a scale and a gate for both. At initialisation the block returns its
    input unchanged."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x_INW: Tensor, condition_INW: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition_INW)).chunk(6, dim=-1)
        x_INW = x_INW + gate1 * self._attend(modulated(x_INW, shift1, scale1))
        hidden = F.gelu(self.up(modulated(x_INW, shift2, scale2)), approximate="tanh")
        return x_INW + gate2 * self.down(hidden)

    def _attend(self, x_INW: Tensor) -> Tensor:
        qkv = self.qkv(x_INW).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (I, heads, N, W / heads)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Denoiser(Component):
    """The denoiser: it predicts the noise in noisy latents.

    The condition of a token is the sum of two parts: the embedding of the timestep, and the token's hidden state,
    normalised and projected. At initialisation the prediction is zero.

    grid: (rows, columns) of the ``N`` tokens, for fixed position embeddings of sines and cosines. width: a multiple of
    num_heads and of 4. layers: number of blocks. steps: ``S``. The buffer signal_S is the share of the latents'
    variance that is left at each step of a cosine schedule (https://arxiv.org/abs/2102.09672).
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        channels: int,
        grid: tuple[int, int],
        width: int = 1024,
        layers: int = 3,
        num_heads: int = 16,
        steps: int = 1000,
    ):
        super().__init__()
        self.latent_input = nn.Linear(channels, width)
        self.hidden_input = nn.Linear(hidden_size, width)
        self.time_input = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(DenoiserBlock(width, num_heads) for _ in range(layers))
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, channels)
        self.register_buffer("places_NW", place_embedding(grid, width))
        self.register_buffer("signal_S", cosine_signal(steps))
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in (self.hidden_input, self.time_input[0], self.time_input[2]):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (*(block.modulation for block in self.layers), self.modulation, self.output):
            nn.init.zeros_(layer.weight)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def noisy(self, latents_INC: Tensor, noise_KINC: Tensor, time_KI: Tensor) -> Tensor:
        """Add the noise of each timestep to the latents, (K, I, N, C)."""
        signal = self.signal_S[time_KI][..., None, None]
        return signal.sqrt() * latents_INC + (1 - signal).sqrt() * noise_KINC

    def forward(self, noisy_KINC: Tensor, time_KI: Tensor, hidden_INH: Tensor) -> Tensor:
        """Return the predicted noise (K, I, N, C). hidden_INH: zeros for a cell without a hidden state."""
        times_KIW = self.time_input(time_embedding(time_KI))
        states_INW = self.hidden_input(F.silu(F.layer_norm(hidden_INH, hidden_INH.shape[-1:])))
        condition = (times_KIW[:, :, None] + states_INW).flatten(0, 1)
        x = self.latent_input(noisy_KINC.flatten(0, 1)) + self.places_NW
        for layer in self.layers:
            x = layer(x, condition)
        shift, scale = self.modulation(F.silu(condition)).chunk(2, dim=-1)
        return self.output(modulated(x, shift, scale)).unflatten(0, time_KI.shape)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


def cosine_signal(steps: int) -> Tensor:
    """Return signal_S of a cosine schedule. Each step removes at most 0.999 of the signal that is left."""
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    level = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
    taken = (1 - level[1:] / level[:-1]).clamp(max=0.999)
    return (1 - taken).cumprod(0).float()


def time_embedding(time: Tensor) -> Tensor:
    """Return the embedding (..., FREQUENCIES) of timesteps: cosines, then sines."""
    half = FREQUENCIES // 2
    rates = torch.exp(-math.log(PERIOD) / half * torch.arange(half, dtype=torch.float32, device=time.device))
    angles = time[..., None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def place_embedding(grid: tuple[int, int], width: int) -> Tensor:
    """Return places_NW: sines and cosines of the column, then of the row."""
    rates = PERIOD ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in grid)
    row_N, column_N = rows.repeat_interleave(grid[1]), columns.repeat(grid[0])
    angles = [place[:, None] * rates for place in (column_N, row_N)]
    return torch.cat([part for own in angles for part in (own.sin(), own.cos())], dim=1).float()
