"""SigLIP2's NaFlex towers, which read images in their own resolution.

Legend: ``I`` images, ``N`` most patches of an image, ``G`` side of the grid of positions that the tower was trained
with, ``E`` encoder width.
"""

import math

import torch
from torch import Tensor

from asvr.base.precision import full_float32
from asvr.data.native import NativeTransform
from asvr.models.encoders.huggingface import HFVisionEncoder
from asvr.registry import ENCODERS

TOWER = "siglip2_vision_model"


@ENCODERS.register_module()
class NaFlexEncoder(HFVisionEncoder):
    """The patch features of one layer of a SigLIP2 NaFlex tower, of images in their own resolution.

    max_num_patches: ``N``, the most visual tokens of an image; its shape decides how many it has, see
        `NativeTransform`. The towers were trained with several numbers up to 1024. transform: ``mean``, ``std`` and
        ``interpolation`` that replace the model's own. The rest is as in `HFVisionEncoder`, which squeezes every image
        to a square for such a tower.

    Features are zero behind an image's own patches, which nothing else depends on. ``grid`` stands for the ``N`` where
    a grid is needed that no image has, such as a tokenizer's.
    """

    interpolation = "bilinear"

    def __init__(
        self,
        *,
        name: str | None = None,
        layer: int | list[int] = -2,
        max_num_patches: int = 256,
        arch: dict | None = None,
        dtype: str = "float32",
        transform: dict | None = None,
        activation_checkpointing: str = "none",
        load_weights: bool = True,
    ):
        if max_num_patches < 1:
            raise ValueError(f"encoder.max_num_patches={max_num_patches}: expected 1 or more")
        if transform and (surplus := transform.keys() - {"mean", "std", "interpolation"}):
            raise ValueError(f"encoder.transform.{min(surplus)}: expected mean, std and interpolation alone")
        super().__init__(
            name=name,
            layer=layer,
            arch=arch,
            dtype=dtype,
            transform=transform,
            activation_checkpointing=activation_checkpointing,
            load_weights=load_weights,
        )
        if not self.naflex:
            raise ValueError(
                f"{name or 'encoder.arch'}: NaFlexEncoder reads a {TOWER}, this is a {self.model.config.model_type}: "
                "use type='HFVisionEncoder'"
            )
        own = self.transform
        self.transform = NativeTransform(self.patch, max_num_patches, own.mean, own.std, own.interpolation)
        rows = next(r for r in range(math.isqrt(max_num_patches), 0, -1) if max_num_patches % r == 0)
        self.grid = (rows, max_num_patches // rows)

    def forward(self, pixels: dict) -> Tensor:
        """pixels: what `NativeTransform` gives of several images.

        The tower's own forward pass looks at the grids, and its resized positions come from the CPU: the host would
        wait for the device. What it does besides is to embed the patches and to call the blocks.
        """
        embeddings, there_IN = self.model.embeddings, self.there(pixels)
        positions = _resized(embeddings.position_embedding.weight, pixels["grid"], self.num_tokens)
        states = [embeddings.patch_embedding(pixels["patches"].to(self.model.dtype)) + positions]
        mask = there_IN[:, None, None].expand(-1, -1, self.num_tokens, -1)  # (I, 1, N, N)
        for block in self.blocks:
            states.append(block(states[-1], attention_mask=mask))
        chosen = self.layer if isinstance(self.layer, list) else [self.layer]
        return torch.cat([states[i] for i in chosen], -1).masked_fill(~there_IN[..., None], 0)

    def there(self, pixels: dict) -> Tensor:
        """Which of the ``N`` are an image's own patches: (I, N), bool."""
        grid_I2 = pixels["grid"]
        return torch.arange(self.num_tokens, device=grid_I2.device) < grid_I2.prod(1, keepdim=True)


def _resized(weight: Tensor, grid_I2: Tensor, num_tokens: int) -> Tensor:
    """The learned positions (G * G, E), resized to each image's grid: (I, N, E).

    Linear with antialiasing, as the towers were trained. torch's ``F.interpolate`` gives wrong numbers for grids of one
    column on the CPU (2.14), and its gradients on CUDA differ from run to run.
    """
    side, (rows_I1, columns_I1) = math.isqrt(len(weight)), grid_I2.split(1, 1)
    index_N = torch.arange(num_tokens, device=grid_I2.device)
    index_IN = index_N.minimum(rows_I1 * columns_I1 - 1)  # behind an image's patches the last one's
    rows_ING = _linear(index_IN // columns_I1, rows_I1, side)
    columns_ING = _linear(index_IN % columns_I1, columns_I1, side)
    weights_INP = (rows_ING[..., None] * columns_ING[..., None, :]).flatten(2)
    with full_float32(weight.device):
        return (weights_INP @ weight.float()).to(weight.dtype)


def _linear(index_IN: Tensor, length_I1: Tensor, side: int) -> Tensor:
    """How much each of ``side`` numbers on a line counts at some places of a line of another length: (I, N, G)."""
    scale_I1 = side / length_I1
    centre_IN1 = ((index_IN + 0.5) * scale_I1 - 0.5)[..., None]
    distance_ING = (torch.arange(side, device=index_IN.device) - centre_IN1).abs()
    weights_ING = (1 - distance_ING / scale_I1.clamp(min=1)[..., None]).clamp(min=0)
    return weights_ING / weights_ING.sum(-1, keepdim=True)
