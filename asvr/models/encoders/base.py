"""The contract of a vision encoder.

Legend: ``I`` images, ``N`` visual tokens of an image, ``E`` encoder width.
"""

from torch import Tensor, nn

from asvr.data.transforms import ImageTransform
from asvr.models.component import Component


class Encoder(Component):
    """``forward(pixels (I, 3, h, w)) -> features_INE``, patches in raster order, no class token.

    width: ``E``. grid: (rows, columns) of visual tokens. transform: what turns an image into pixels, a tensor or a
    dict of tensors (see `asvr.data.transforms`). An encoder that gives the tokens of several grids one after another
    has ``grids``, the first of which is ``grid``, and its own ``num_tokens``.
    A subclass sets them in its constructor, which must also work under ``torch.device("meta")``.
    """

    width: int
    grid: tuple[int, int]
    transform: ImageTransform

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def blocks(self) -> list[nn.Module]:
        """Its transformer blocks in order, for what goes by layers, such as ``layer_decay``; a subclass without any
        leaves it out."""
        return []

    def forward(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must turn pixels (I, 3, h, w) into features_INE")


def grids_of(encoder) -> list[tuple[int, int]]:
    """Of an encoder that gives the tokens of several grids one after another, ``grids``; else its one grid."""
    return [tuple(grid) for grid in getattr(encoder, "grids", None) or [encoder.grid]]
