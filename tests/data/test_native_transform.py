"""Images in their own resolution: what the transform makes is what transformers' processor makes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from asvr.data.native import NativeTransform
from asvr.data.transforms import blank_pixels, flat_pixels, stacked

SIZES = [(640, 480), (90, 700), (64, 64), (3000, 30), (7, 5), (1, 1)]


def noise(size: tuple[int, int]) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.RandomState(width).randint(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("max_num_patches", [16, 256])
def test_it_gives_what_the_processor_gives_bit_for_bit(max_num_patches):
    processor = Siglip2ImageProcessorPil(patch_size=16, max_num_patches=max_num_patches)
    expected = processor([noise(size) for size in SIZES], return_tensors="pt")
    transform = NativeTransform(max_num_patches=max_num_patches)
    made = stacked([transform(noise(size)) for size in SIZES])
    assert torch.equal(made["patches"], expected["pixel_values"])
    assert torch.equal(made["grid"], expected["spatial_shapes"])
    assert [list(transform.grid_of(size)) for size in SIZES] == expected["spatial_shapes"].tolist()


def test_other_numbers_than_the_defaults_are_used():
    own = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    processor = Siglip2ImageProcessorPil(
        patch_size=14, max_num_patches=49, resample=3, image_mean=own["mean"], image_std=own["std"]
    )
    expected = processor([noise((50, 40))], return_tensors="pt")
    made = NativeTransform(patch_size=14, max_num_patches=49, interpolation="bicubic", **own)(noise((50, 40)))
    assert torch.equal(made["patches"], expected["pixel_values"][0])


def test_a_picture_in_grey_or_with_a_palette_is_read():
    transform = NativeTransform(max_num_patches=16)
    grey = noise((40, 30)).convert("L")
    assert torch.equal(transform(grey)["patches"], transform(grey.convert("RGB"))["patches"])


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 300))
def test_no_image_takes_more_than_the_most_patches(width, height, most):
    rows, columns = NativeTransform(max_num_patches=most).grid_of((width, height))
    assert rows >= 1 and columns >= 1 and rows * columns <= most


def test_padding_is_zero_and_blanks_are_alike():
    transform = NativeTransform(max_num_patches=16)
    made = stacked([transform(noise((100, 10)))])
    count = int(made["grid"].prod())
    assert count < 16 and not made["patches"][:, count:].any() and made["patches"][:, :count].any()
    blank = blank_pixels(transform, 1)
    assert [(t.shape, t.dtype) for t in flat_pixels(blank)[0]] == [(t.shape, t.dtype) for t in flat_pixels(made)[0]]
    assert blank["grid"].prod() == 16


def test_another_aspect_is_refused():
    with pytest.raises(ValueError, match="image_aspect='pad': this encoder reads images in their own resolution"):
        NativeTransform()(noise((10, 10)), "pad")
