"""Pictures are opened in RGB whatever their file's kind, or refused in words."""

import numpy as np
import pytest
from PIL import Image

from asvr.data.images import open_image
from asvr.data.refusals import Refused

COLORS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", "tif"), ("P", "png"), ("LA", "png"), ("RGBA", "png"), ("1", "png")]
)
def test_other_modes_become_rgb(mode, suffix, tmp_path):
    file = tmp_path / f"picture.{suffix}"
    COLORS.convert(mode).save(file)
    assert np.array_equal(open_image(file), COLORS.convert(mode).convert("RGB"))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_shades(suffix, tmp_path):
    grey = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / f"grey.{suffix}")
    for source in (tmp_path / f"grey.{suffix}", Image.fromarray(grey)):
        assert np.array_equal(np.asarray(open_image(source))[..., 0], grey // 256)


def test_a_photo_is_turned_on_request(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    COLORS.save(tmp_path / "photo.png", exif=exif)
    assert open_image(tmp_path / "photo.png").size == (8, 6)
    assert np.array_equal(
        open_image(tmp_path / "photo.png", upright=True), COLORS.transpose(Image.Transpose.ROTATE_270)
    )


def test_a_large_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    COLORS.save(tmp_path / "picture.png")
    assert open_image(tmp_path / "picture.png", max_pixels=48).size == (8, 6)
    monkeypatch.setattr(Image.Image, "convert", None)
    with pytest.raises(Refused, match="picture.png has 8 x 6 pixels, the limit is 47") as error:
        open_image(tmp_path / "picture.png", max_pixels=47)
    assert error.value.reason == "too large a picture"


def test_what_pil_cannot_decode_is_refused(tmp_path):
    (tmp_path / "odd.dds").write_bytes(b"DDS " + (124).to_bytes(4, "little") + bytes(200))
    with pytest.raises(Refused, match="odd.dds cannot be read"):
        open_image(tmp_path / "odd.dds")
