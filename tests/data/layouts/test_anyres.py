import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from asvr.data.layouts import AnyRes
from asvr.data.transforms import ImageTransform


class Tower:
    """What a layout takes of an encoder: 4 x 4 cells of images of 32 pixels."""

    def __init__(self, side: int = 32, cells: int = 4, **own):
        self.grid, self.num_tokens, self.transform = (cells, cells), cells**2, ImageTransform(size=(side, side), **own)


GRIDS = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
SIZES = [(64, 64), (100, 40), (40, 100), (33, 31), (640, 480), (31, 200), (200, 31), (7, 5), (96, 32), (1, 90)]


def image_of(size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_transformers(size):
    tower = Tower()
    processor = LlavaNextImageProcessorPil(
        size=dict(shortest_edge=32),
        crop_size=dict(height=32, width=32),
        image_grid_pinpoints=[[32 * rows, 32 * columns] for rows, columns in GRIDS],
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    wanted = processor(image_of(size), return_tensors="pt")["pixel_values"][0]
    layout = AnyRes(encoder=tower, grids=GRIDS)
    found = torch.stack([tower.transform(crop) for crop in layout.crops(image_of(size))])
    assert layout(size).num_crops == len(found) == len(wanted)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


sides = st.integers(1, 400)
grids = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=150)
@given(width=sides, height=sides, grids=grids, overview=st.booleans(), unpad=st.booleans(), newline=st.booleans())
def test_what_any_layout_has(width, height, grids, overview, unpad, newline):
    layout = AnyRes(encoder=Tower(), grids=grids, overview=overview, unpad=unpad, newline=newline)
    own = layout((width, height))
    crops = layout.crops(Image.new("RGB", (width, height)))
    assert len(crops) == own.num_crops and all(crop.size == (32, 32) for crop in crops)
    visual = own.tokens_L[own.tokens_L >= 0]
    assert len(set(visual.tolist())) == len(visual) == own.num_visual > 0
    assert visual.max() < 16 * own.num_crops and own.tokens_L.min() >= -layout.num_separators
    if overview:
        assert own.tokens_L[:16].tolist() == list(range(16))
    rows, columns = layout._tiles((width, height))
    if not unpad:
        assert own.num_visual == 16 * own.num_crops
        assert own.num_tokens == own.num_visual + (4 * rows if newline else 0)
    assert own.num_tokens <= layout.largest().num_tokens
    assert not own.regular and layout.fixed is None and layout.per_image is layout


def test_cells_of_tiles_are_read_row_by_row_over_all_tiles():
    layout = AnyRes(encoder=Tower(cells=2), grids=[(1, 2)], unpad=False)((64, 32))
    assert layout.tokens_L.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1]
    assert layout.grids == ((2, 2),) * 3


def test_cells_that_show_padding_are_left_out():
    """Half as high as its tiles: of 4 rows of cells, one above and one below show nothing."""
    layout = AnyRes(encoder=Tower(), grids=[(1, 1)], overview=False)((32, 16))
    assert layout.tokens_L.tolist() == [*range(4, 8), -1, *range(8, 12), -1]


def test_a_repr_names_all_that_decides_it():
    first, second = (AnyRes(encoder=Tower(), unpad=unpad) for unpad in (True, False))
    assert repr(first) != repr(second) and "num_cells=16" in repr(first)


@pytest.mark.parametrize("grids", [[], [(0, 1)], [(1,)], [1], [(1, True)], [(1.0, 2)]])
def test_grids_that_are_none_are_told(grids):
    with pytest.raises(ValueError, match=r"model\.layout\.grids .*expected \(rows, columns\) of tiles"):
        AnyRes(encoder=Tower(), grids=grids)


def test_an_encoder_of_several_grids_is_refused():
    tower = Tower()
    tower.num_tokens += 4
    with pytest.raises(ValueError, match="AnyRes cuts images for an encoder with one fixed grid"):
        AnyRes(encoder=tower)
