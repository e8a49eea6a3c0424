"""Inputs that give other pixels in transformers than in training: what an exported README.md says, input by input."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_export import CASES, tiny
from transformers.image_transforms import convert_to_rgb

from asvr.data.images import open_image
from asvr.data.transforms import ImageTransform
from asvr.interchange.export import build_processor


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def transparent(mode: str) -> Image.Image:
    """Red, of which the left half cannot be seen."""
    image = Image.new("RGBA", (40, 30), (255, 0, 0, 255))
    image.paste((255, 0, 0, 0), (0, 0, 20, 30))
    return image.convert(mode)


def indexed() -> Image.Image:
    image = Image.new("P", (40, 30), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 20, 30))
    return image


# transformers 5.17 drops transparency, as training does.
ON_WHITE = np.asarray(convert_to_rgb(transparent("RGBA")))[0, 0].tolist() == [255, 255, 255]
GREY = noise(40, 30, 1)[..., 0]
# name: what is saved, how, and whether a PIL image, one in RGB, and a path give the pixels of training. (PIL keeps the
# transparent colour of a palette in RGB.)
INPUTS = {
    "colours": (Image.fromarray(noise(40, 30)), {}, (True, True, True)),
    "grey": (Image.fromarray(GREY), {}, (True, True, True)),
    "1 bit": (Image.fromarray(GREY > 128), {}, (True, True, True)),
    "palette": (indexed(), {}, (True, True, True)),
    "animated": (indexed(), dict(format="GIF", save_all=True, append_images=[Image.new("P", (40, 30))]), (True,) * 3),
    "cmyk": (Image.fromarray(noise(40, 30)).convert("CMYK"), dict(format="JPEG"), (True, True, True)),
    "alpha, opaque": (Image.fromarray(noise(40, 30)).convert("RGBA"), {}, (True, True, True)),
    "alpha": (transparent("RGBA"), {}, (False, True, True)),
    "grey with alpha": (transparent("LA"), {}, (False, True, True)),
    "palette, transparent": (indexed(), dict(transparency=0), (False, False, False)),
    "gif, transparent": (indexed(), dict(format="GIF", transparency=0), (False, False, False)),
    "colour, transparent": (transparent("RGB"), dict(transparency=(255, 0, 0)), (False, False, False)),
    "16 bit grey": (Image.fromarray(GREY.astype(np.uint16) * 257), {}, (False, False, False)),
    "turned": (Image.fromarray(noise(40, 30)), dict(format="JPEG", exif=True), (True, True, False)),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("tower", ["siglip_vision_model", "clip_vision_model"])
@pytest.mark.parametrize("aspect", ["square", "pad"])
def test_which_inputs_give_other_pixels(name, tower, aspect, tmp_path):
    image, options, expected = INPUTS[name]
    options = dict(dict(format="PNG"), **options)
    if options.pop("exif", False):
        exif = Image.Exif()
        exif[274] = 6
        options["exif"] = exif
    file = tmp_path / "image"
    image.save(file, **options)
    source = tiny(tower, *CASES[0][1:])
    source.image_aspect = aspect
    processor, _ = build_processor(source)
    ours = source.model.encoder.transform(open_image(file), aspect)
    with Image.open(file) as opened:
        given = (opened, opened.convert("RGB"), processor.image_processor.fetch_images(str(file)))
        theirs = [processor.image_processor(one, return_tensors="pt")["pixel_values"][0] for one in given]
        opaque = opened.convert("RGB")  # as the README.md says
        opaque.info.pop("transparency", None)
        mended = processor.image_processor(opaque, return_tensors="pt")["pixel_values"][0]
    if not ON_WHITE and name.endswith(("alpha", "transparent")):
        expected = (True, True, True)
    assert tuple(torch.equal(ours, pixels) for pixels in theirs) == expected
    assert torch.equal(ours, mended) == (name != "16 bit grey")


@pytest.mark.parametrize("name", INPUTS)
def test_which_inputs_give_other_tiles(name, tmp_path):
    image, options, expected = INPUTS[name]
    options = dict(dict(format="PNG"), **options)
    if options.pop("exif", False):
        exif = Image.Exif()
        exif[274] = 6
        options["exif"] = exif
    file = tmp_path / "image"
    image.save(file, **options)
    source = tiny(*CASES[0], dict(layout=dict(type="AnyRes")))
    processor, _ = build_processor(source)
    ours = torch.stack([source.model.encoder.transform(crop) for crop in source.model.layout.crops(open_image(file))])
    with Image.open(file) as opened:
        given = (opened, opened.convert("RGB"), processor.image_processor.fetch_images(str(file)))
        theirs = [processor.image_processor(one, return_tensors="pt")["pixel_values"][0] for one in given]
    if not ON_WHITE and name.endswith(("alpha", "transparent")):
        expected = (True, True, True)
    assert tuple(torch.equal(ours, pixels) for pixels in theirs) == expected


@pytest.mark.parametrize(("aspect", "size"), [("pad", (100, 60)), ("square", (774, 13))])
def test_very_long_images_give_other_pixels(aspect, size, monkeypatch):
    """Of a side that is too long to be made whole, before (padded) or after (cropped) resizing."""
    source = tiny(*CASES[3])
    source.image_aspect = aspect
    processor, _ = build_processor(source)
    image = Image.fromarray(noise(*size))
    theirs = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(source.model.encoder.transform(image, aspect), theirs)
    monkeypatch.setattr("asvr.data.transforms.LONGEST_SIDE", 64)  # instead of an image of 8193 pixels
    assert not torch.equal(source.model.encoder.transform(image, aspect), theirs)


def test_an_8_bit_copy_of_16_bit_grey_gives_the_pixels_of_training(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (30, 40), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    transform = ImageTransform((28, 28))
    assert torch.equal(
        transform(open_image(tmp_path / "deep.png")), transform(Image.fromarray((deep >> 8).astype(np.uint8)))
    )
