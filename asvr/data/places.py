"""The positions of the visual tokens of a batch, and the encoder cell of each of them."""

import numpy as np
import torch

from asvr.data.batch import Cells
from asvr.data.layouts import Layout


def places_of(layouts: list[Layout], starts: list[int], first: list[bool], num_cells: int) -> dict:
    """The fields of a `Batch` for visual positions and cells.

    starts: the first flat position of each image. first: whether the image begins its sample. num_cells: ``N``."""
    crops = [layout.num_crops for layout in layouts]
    if all(layout.regular and layout.num_tokens == num_cells for layout in layouts):
        visual_position_V = (torch.tensor(starts, dtype=torch.int64).view(-1, 1) + torch.arange(num_cells)).flatten()
        unpreceded, cells = [i * num_cells for i, alone in enumerate(first) if alone], None
    else:
        visual_position_V, unpreceded, cells = _of_cells(layouts, starts, first, num_cells)
    return dict(
        visual_position_V=visual_position_V,
        num_cells=num_cells,
        crops=crops,
        cells=cells,
        unpreceded=unpreceded,
        preceded_V=_others(len(visual_position_V), unpreceded),
    )


def _of_cells(layouts: list[Layout], starts: list[int], first: list[bool], num_cells: int) -> tuple:
    positions, indices, separators, kinds, unpreceded = [], [], [], [], []
    crops = count = 0
    for layout, start, alone in zip(layouts, starts, first, strict=True):
        position_L, is_visual_L = start + np.arange(layout.num_tokens), layout.tokens_L >= 0
        if alone and is_visual_L[0]:
            unpreceded.append(count)
        positions.append(position_L[is_visual_L])
        indices.append(layout.tokens_L[is_visual_L] + crops * num_cells)
        separators.append(position_L[~is_visual_L])
        kinds.append(-1 - layout.tokens_L[~is_visual_L])
        crops += layout.num_crops
        count += len(positions[-1])
    index_V, grids = np.concatenate(indices), [grid for layout in layouts for grid in layout.grids]
    rows_K = torch.tensor(np.concatenate(separators)), torch.tensor(np.concatenate(kinds))
    cells = Cells(torch.tensor(index_V), index_V, grids, *rows_K)
    return torch.tensor(np.concatenate(positions)), unpreceded, cells


def _others(count: int, unpreceded: list[int]) -> torch.Tensor | None:
    if not unpreceded:
        return None
    return torch.tensor(np.delete(np.arange(count), unpreceded))
