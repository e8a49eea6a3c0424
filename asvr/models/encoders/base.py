"""The contract of a vision encoder.

Legend: ``I`` images, ``N`` visual tokens of an image, ``E`` encoder width.
"""

from torch import Tensor, nn

from asvr.data.transforms import ImageTransform
from asvr.models.component import Component


class Encoder(Component):
    """A vision encoder: ``forward(pixels (I, 3, h, w)) -> features_INE``, in raster order, without a class token.

    width: ``E``. grid: (rows, columns) of visual tokens. transform: it turns an image into pixels, a tensor or a dict
    of tensors (see `asvr.data.transforms`). An encoder whose tokens belong to several grids, one after another, has an
    attribute ``grids`` and its own ``num_tokens``; ``grid`` is the first of ``grids``.

    A subclass sets these attributes in its constructor, which must also work under ``torch.device("meta")``.
    """

    width: int
    grid: tuple[int, int]
    transform: ImageTransform

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks in order, which ``layer_decay`` and others need. An encoder may have none."""
        return []

    def forward(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} needs a forward() from pixels (I, 3, h, w) to features_INE")


def grids_of(encoder) -> list[tuple[int, int]]:
    """Return all grids of an encoder: its ``grids`` if it has several, otherwise its one ``grid``."""
    return [tuple(grid) for grid in getattr(encoder, "grids", None) or [encoder.grid]]
