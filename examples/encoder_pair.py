"""An encoder of your own beside an encoder of the library. Each sees the image in its own size.

``configs/examples/encoder_pair.py`` joins it to a convolutional network. This file does not depend on the other.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from asvr.data.transforms import ImageTransform
from asvr.models.encoders.base import Encoder
from asvr.registry import ENCODERS


@ENCODERS.register_module()
class EdgePatches(Encoder):
    """An encoder without weights. Its features are the strength of edges in several directions, patch by patch."""

    def __init__(self, *, image_size: int = 64, patch: int = 8, directions: int = 8, load_weights: bool = True):
        super().__init__()
        if image_size % patch:
            raise ValueError(f"EdgePatches image_size={image_size}: expected a multiple of patch={patch}")
        self.patch, self.width = patch, directions
        self.grid = (image_size // patch, image_size // patch)
        self.transform = ImageTransform(size=(image_size, image_size))
        self.angles = [2 * math.pi * i / directions for i in range(directions)]

    def forward(self, pixels: Tensor) -> Tensor:
        grey = pixels.float().mean(1)
        right, down = F.pad(grey.diff(dim=2), (0, 1)), F.pad(grey.diff(dim=1), (0, 0, 0, 1))
        edges = torch.stack([(right * math.cos(a) + down * math.sin(a)).relu() for a in self.angles], 1)
        return F.avg_pool2d(edges, self.patch).flatten(2).transpose(1, 2)
