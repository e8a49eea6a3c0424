"""Tiles beside an overview, as LLaVA-NeXT has them.

Legend: ``N`` cells of a crop, ``R`` rows and ``C`` columns of tiles.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil

import numpy as np
from PIL import Image

from asvr.data.layouts.base import Grid, ImageLayout, Layout, Size
from asvr.data.transforms import RESAMPLING
from asvr.registry import LAYOUTS

GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # LLaVA-NeXT's ``image_grid_pinpoints``, in tiles
NEWLINE = -1


@LAYOUTS.register_module()
class AnyRes(ImageLayout):
    """An overview of the image, then its tiles: each crop has the size that the encoder reads.

    The image is scaled into the one of ``grids`` that keeps most of its pixels and wastes fewest, centred, and cut. The
    tiles' cells are read row by row over all tiles, without those that show padding, and behind each row stands the
    separator 0, a newline.

    grids: rows and columns of tiles. overview: whether the squeezed image comes first. unpad: whether cells of padding
        are left out. newline: whether the separators are there.

    Matches ``anyres`` with ``spatial_unpad`` of the released LLaVA-NeXT, as transformers' ``LlavaNext`` has it.
    Raises ``ValueError`` for grids that are none, and encoders whose cells are no one fixed grid.
    """

    aspects = ("square", "resize")  # crops are as the encoder reads them: nothing is left to pad

    def __init__(
        self,
        *,
        encoder,
        grids: Sequence[Sequence[int]] = GRIDS,
        overview: bool = True,
        unpad: bool = True,
        newline: bool = True,
    ):
        super().__init__(encoder=encoder)
        self.grids = tuple((rows, columns) for rows, columns in map(_checked, grids))
        if not self.grids:
            raise ValueError("model.layout.grids is empty: expected (rows, columns) of tiles, such as [(1, 2), (2, 2)]")
        if hasattr(self.transform, "grid_of") or self.num_cells != self.grid[0] * self.grid[1]:
            raise ValueError(
                f"model.layout: AnyRes cuts images for an encoder with one fixed grid, and {type(encoder).__name__} "
                "has another kind of tokens: leave model.layout out"
            )
        self.overview, self.unpad, self.newline = overview, unpad, newline
        self.num_separators, self.first_is_whole = int(newline), overview

    def __call__(self, size: Size) -> Layout:
        tiles = self._tiles(size)
        return _layout(self.grid, tiles, self._kept(size, tiles), self.overview, self.newline)

    def largest(self) -> Layout:
        kept = ((0, rows * self.grid[0], 0, columns * self.grid[1]) for rows, columns in self.grids)
        found = (_layout(self.grid, *pair, self.overview, self.newline) for pair in zip(self.grids, kept, strict=True))
        return max(found, key=lambda layout: (layout.num_tokens, layout.num_crops))

    def cells_key(self) -> str:
        return f"{self.crops_key()} unpad={self.unpad}"

    def crops_key(self) -> str:
        return f"AnyRes {self.grids} overview={self.overview}"

    def crops(self, image: Image.Image) -> list[Image.Image]:
        (rows, columns), (height, width) = self._tiles(image.size), self.transform.size
        resampling = RESAMPLING[getattr(self.transform, "interpolation", "bicubic")]
        whole = columns * width, rows * height
        scaled = image.resize(_scaled(image.size, whole), resampling)
        canvas = Image.new("RGB", whole)
        canvas.paste(scaled, ((whole[0] - scaled.width) // 2, (whole[1] - scaled.height) // 2))
        corners = [(column * width, row * height) for row in range(rows) for column in range(columns)]
        tiles = [canvas.crop((left, top, left + width, top + height)) for left, top in corners]
        return [image.resize((width, height), resampling), *tiles] if self.overview else tiles

    def _tiles(self, size: Size) -> Grid:
        from transformers.image_processing_utils import select_best_resolution  # here: it loads transformers

        height, width = self.transform.size
        known = [(rows * height, columns * width) for rows, columns in self.grids]
        best = select_best_resolution(size[::-1], known)
        return self.grids[known.index(best)] if best else self.grids[0]  # none: not a pixel is left of a line

    def _kept(self, size: Size, tiles: Grid) -> tuple[int, int, int, int]:
        """Rows from and to, columns from and to, of the cells that are kept, counted over all tiles."""
        rows, columns = (count * own for count, own in zip(tiles, self.grid, strict=True))
        if not self.unpad:
            return 0, rows, 0, columns
        (width, height), floor = size, 0 if self.overview else 1
        if width / height > columns / rows:
            cut = (rows - max(floor, int(round(height * (columns / width), 7)))) // 2
            return cut, rows - cut, 0, columns
        cut = (columns - max(floor, int(round(width * (rows / height), 7)))) // 2
        return 0, rows, cut, columns - cut


def _checked(grid: Sequence[int]) -> Sequence[int]:
    fits = isinstance(grid, Sequence) and len(grid) == 2
    if not fits or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in grid):
        raise ValueError(f"model.layout.grids has {grid!r}: expected (rows, columns) of tiles, such as (2, 2)")
    return grid


def _scaled(size: Size, whole: Size) -> Size:
    """Of the image in a larger one of size ``whole``."""
    (width, height), across, down = size, whole[0] / size[0], whole[1] / size[1]
    if across < down:
        return whole[0], min(ceil(height * across), whole[1])
    return min(ceil(width * down), whole[0]), whole[1]


@lru_cache(maxsize=256)
def _layout(grid: Grid, tiles: Grid, kept: tuple[int, int, int, int], overview: bool, newline: bool) -> Layout:
    num_cells, (rows, columns) = grid[0] * grid[1], tiles
    cells = np.arange(rows * columns * num_cells).reshape(rows, columns, *grid) + overview * num_cells
    cells = cells.transpose(0, 2, 1, 3).reshape(rows * grid[0], columns * grid[1])
    cells = cells[kept[0] : kept[1], kept[2] : kept[3]]
    if newline:
        cells = np.concatenate([cells, np.full((len(cells), 1), NEWLINE)], 1)
    tokens = [np.arange(num_cells)] * overview + [cells.reshape(-1)]
    return Layout(np.concatenate(tokens), (grid,) * (overview + rows * columns))
