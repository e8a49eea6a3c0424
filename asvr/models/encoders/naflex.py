"""SigLIP2's NaFlex towers, which read images in their own resolution.

Legend: ``I`` images, ``N`` largest number of patches of an image, ``G`` side of the grid of the tower's learned
positions, ``E`` encoder width.
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
    """The patch features of a SigLIP2 NaFlex tower, which reads images in their own resolution.

    max_num_patches: ``N``, the largest number of visual tokens of an image. How many an image has depends on its size,
        see `NativeTransform`. The towers were trained with several numbers up to 1024.
    transform: ``mean``, ``std`` and ``interpolation`` that replace the model's own.

    The other arguments are those of `HFVisionEncoder`. (With such a tower, `HFVisionEncoder` resizes every image to a
    square.) Features after an image's own patches are zero, and no other feature depends on them. ``grid`` is a grid of
    ``N`` cells, for parts that need one grid for all images, such as a visual tokenizer.
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
            raise ValueError(f"encoder.max_num_patches={max_num_patches}: expected at least 1")
        if transform and (surplus := transform.keys() - {"mean", "std", "interpolation"}):
            raise ValueError(f"encoder.transform.{min(surplus)}: expected only mean, std and interpolation")
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
                f"{name or 'encoder.arch'}: NaFlexEncoder needs a {TOWER}, but this is a "
                f"{self.model.config.model_type}: use type='HFVisionEncoder'"
            )
        own = self.transform
        self.transform = NativeTransform(self.patch, max_num_patches, own.mean, own.std, own.interpolation)
        rows = next(r for r in range(math.isqrt(max_num_patches), 0, -1) if max_num_patches % r == 0)
        self.grid = (rows, max_num_patches // rows)

    def forward(self, pixels: dict) -> Tensor:
        """Return features_INE. pixels: the output of `NativeTransform` for several images.

        It does what the tower's own forward pass does: it embeds the patches, adds positions, and calls the blocks. The
        tower's own pass would make the CPU wait for the device, because it reads the grids and resizes positions there.
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
        """Return which of the ``N`` patches belong to the image: (I, N), bool."""
        grid_I2 = pixels["grid"]
        return torch.arange(self.num_tokens, device=grid_I2.device) < grid_I2.prod(1, keepdim=True)


def _resized(weight: Tensor, grid_I2: Tensor, num_tokens: int) -> Tensor:
    """Resize the learned positions (G * G, E) to each image's grid: (I, N, E).

    It is linear with antialiasing, as in the towers' training. torch's ``F.interpolate`` is not used: on the CPU it
    gives wrong numbers for grids of one column (2.14), and on CUDA its gradients differ from run to run.
    """
    side, (rows_I1, columns_I1) = math.isqrt(len(weight)), grid_I2.split(1, 1)
    index_N = torch.arange(num_tokens, device=grid_I2.device)
    index_IN = index_N.minimum(rows_I1 * columns_I1 - 1)  # after the image's patches: the position of the last one
    rows_ING = _linear(index_IN // columns_I1, rows_I1, side)
    columns_ING = _linear(index_IN % columns_I1, columns_I1, side)
    weights_INP = (rows_ING[..., None] * columns_ING[..., None, :]).flatten(2)
    with full_float32(weight.device):
        return (weights_INP @ weight.float()).to(weight.dtype)


def _linear(index_IN: Tensor, length_I1: Tensor, side: int) -> Tensor:
    """Return the weights (I, N, G) of linear resizing in one dimension, from ``side`` numbers to another length."""
    scale_I1 = side / length_I1
    centre_IN1 = ((index_IN + 0.5) * scale_I1 - 0.5)[..., None]
    distance_ING = (torch.arange(side, device=index_IN.device) - centre_IN1).abs()
    weights_ING = (1 - distance_ING / scale_I1.clamp(min=1)[..., None]).clamp(min=0)
    return weights_ING / weights_ING.sum(-1, keepdim=True)
