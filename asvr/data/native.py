"""The transform for images in their own resolution: as many patches as the shape needs, then padding.

Legend: ``I`` images, ``N`` the maximum number of patches of an image.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

from asvr.data.layouts.base import Grid, Size
from asvr.data.transforms import RESAMPLING, normalised


@dataclass(frozen=True)
class NativeTransform:
    """Resize to at most ``max_num_patches`` patches and cut into patches, in the image's own proportions.

    It computes the same as `Siglip2ImageProcessorPil` of transformers, bit for bit: resize, scale to [0, 1], normalise
    and cut.

    patch_size: pixels along a side. max_num_patches: ``N``. size: (height, width) in pixels of a square image with
    about as many pixels, for code that needs a size.
    """

    patch_size: int = 16
    max_num_patches: int = 256
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bilinear"

    @property
    def size(self) -> tuple[int, int]:
        side = self.patch_size * math.isqrt(self.max_num_patches)
        return side, side

    def grid_of(self, size: Size) -> Grid:
        """Rows and columns of patches for an image of this width and height. Small images are enlarged."""
        return _grid_of(size, self.patch_size, self.max_num_patches)

    def __call__(self, image: Image.Image, aspect: str = "square") -> dict:
        """Return ``patches`` and ``grid``.

        patches: (N, patch * patch * 3) float32 in raster order, padded with zeros. grid: (2,) int64, the rows and
        columns of patches of the image. Raises ``ValueError`` if ``aspect`` is not ``square``: the image keeps its own.
        """
        if aspect != "square":
            raise ValueError(
                f"image_aspect={aspect!r}: this encoder reads images in their own resolution: set 'square'"
            )
        (rows, columns), side = self.grid_of(image.size), self.patch_size
        resized = image.convert("RGB").resize((columns * side, rows * side), RESAMPLING[self.interpolation])
        pixels = normalised(resized, self.mean, self.std).reshape(rows, side, columns, side, 3)
        patches = np.zeros((self.max_num_patches, side * side * 3), np.float32)
        patches[: rows * columns] = pixels.transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
        return dict(patches=torch.from_numpy(patches), grid=torch.tensor([rows, columns]))

    def blank(self, images: int) -> dict:
        """Zeros in the form of ``images`` images of maximum size, see `asvr.data.transforms.blank_pixels`."""
        return dict(
            patches=torch.zeros(images, self.max_num_patches, self.patch_size**2 * 3),
            grid=torch.tensor([[1, self.max_num_patches]]).repeat(images, 1),
        )


@lru_cache(maxsize=4096)
def _grid_of(size: Size, patch_size: int, max_num_patches: int) -> Grid:
    width, height = size
    sides = get_image_size_for_max_num_patches(height, width, patch_size, max_num_patches)
    return sides[0] // patch_size, sides[1] // patch_size
