import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from asvr.data.transforms import ImageTransform, pad_to_square

CLIP = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
SIZES = [(40, 25), (25, 40), (33, 33), (101, 30)]


def picture(size, mode="RGB"):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_square_is_siglips_own_processor(size, mode):
    image = picture(size, mode)
    processor = SiglipImageProcessorPil(size=dict(height=20, width=24))
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ImageTransform(size=(20, 24))(image), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_square_is_clips_own_processor(size):
    image = picture(size)
    processor = CLIPImageProcessorPil(size=dict(shortest_edge=16), crop_size=dict(height=16, width=16))
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    transform = ImageTransform(size=(16, 16), center_crop=True, **CLIP)
    torch.testing.assert_close(transform(image), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_pad_is_the_processor_on_a_square_in_the_mean_colour(size):
    """LLaVA-1.5's finetune: a square canvas in the mean colour, the image in its middle."""
    image = picture(size)
    side = max(size)
    canvas = np.full((side, side, 3), [122, 116, 104], dtype=np.uint8)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = np.array(image)
    processor = CLIPImageProcessorPil(size=dict(shortest_edge=16), crop_size=dict(height=16, width=16))
    expected = processor(Image.fromarray(canvas), return_tensors="pt")["pixel_values"][0]
    transform = ImageTransform(size=(16, 16), center_crop=True, **CLIP)
    torch.testing.assert_close(transform(image, "pad"), expected, atol=1e-5, rtol=0)


def test_resize_squeezes_whatever_the_processor_does():
    image = picture((40, 25))
    expected = SiglipImageProcessorPil(size=dict(height=16, width=16))(image, return_tensors="pt")["pixel_values"][0]
    crop = ImageTransform(size=(16, 16), center_crop=True)
    torch.testing.assert_close(crop(image, "resize"), expected, atol=1e-5, rtol=0)
    assert not torch.equal(crop(image, "resize"), crop(image, "square"))


def test_a_square_picture_is_not_padded():
    image = picture((33, 33))
    assert pad_to_square(image, (0, 0, 0)) is image


def test_an_unknown_aspect_is_refused():
    with pytest.raises(ValueError, match="image_aspect='wide'"):
        ImageTransform(size=(4, 4))(picture((5, 5)), "wide")


@pytest.mark.parametrize("side", [224, 336, 384])
def test_crops_are_those_of_the_processor_for_every_ratio(side, monkeypatch):
    """Sizes alone: transformers' own rule, for many sizes (a rounded scale differs in some)."""
    asked = []
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, size, *_, **__: asked.append(size) or Image.new("RGB", size)
    )
    processor = CLIPImageProcessorPil(size=dict(shortest_edge=side), crop_size=dict(height=side, width=side))
    transform = ImageTransform(size=(side, side), center_crop=True)
    ratios = [(40, 85), (40, 90), (46, 69), (46, 138), (60, 165), (44, 55), (44, 99), (41, 205), (640, 480), (333, 500)]
    for width, height in [*ratios, *((height, width) for width, height in ratios)]:
        asked.clear()
        transform(Image.new("RGB", (width, height)))
        processor(Image.new("RGB", (width, height)), return_tensors="np")
        assert len(asked) == 2 and asked[0] == asked[1], (width, height)
