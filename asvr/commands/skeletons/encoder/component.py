"""A vision encoder of your own.

Legend: I images, N visual tokens of an image, E encoder width.
"""

import torch.nn.functional as F
from torch import Tensor

from asvr.data.transforms import ImageTransform
from asvr.models.encoders.base import Encoder
from asvr.registry import ENCODERS


@ENCODERS.register_module()
class MyComponent(Encoder):
    """The colours of each patch, averaged over cells x cells parts of it. It has no weights.

    image_size: side of the square input in pixels. patch: side of a patch in pixels; each patch is one visual token.
    cells: parts of a patch in each direction.
    """

    def __init__(self, *, image_size: int = 64, patch: int = 16, cells: int = 4, load_weights: bool = True):
        super().__init__()
        if image_size % patch or patch % cells:
            raise ValueError(
                f"MyComponent: cells={cells} must divide patch={patch}, which divides image_size={image_size}"
            )
        self.cell, self.cells = patch // cells, cells
        self.width = 3 * cells * cells  # E
        self.grid = (image_size // patch, image_size // patch)  # rows and columns; N is their product
        self.transform = ImageTransform(size=(image_size, image_size))  # makes the pixels from an image

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (I, 3, h, w) -> features_INE, patches row by row."""
        colours = F.avg_pool2d(pixels, self.cell)
        return F.unfold(colours, self.cells, stride=self.cells).transpose(1, 2)
