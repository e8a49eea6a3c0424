"""Pictures are opened in RGB whatever their file's kind, or refused in words."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

from asvr.data.images import image_bytes, open_image
from asvr.data.refusals import Refused

COLORS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", "tif"), ("P", "png"), ("LA", "png"), ("RGBA", "png"), ("1", "png")]
)
def test_other_modes_become_rgb(mode, suffix, tmp_path):
    file = tmp_path / f"image.{suffix}"
    COLORS.convert(mode).save(file)
    assert np.array_equal(open_image(file), COLORS.convert(mode).convert("RGB"))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_shades(suffix, tmp_path):
    grey = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / f"grey.{suffix}")
    for source in (tmp_path / f"grey.{suffix}", Image.fromarray(grey)):
        assert np.array_equal(np.asarray(open_image(source))[..., 0], grey // 256)


def test_the_bytes_of_a_picture_are_those_that_are_read():
    dark, light = (Image.fromarray(np.full((2, 2), value, np.uint16)) for value in (300, 60000))
    assert image_bytes(dark) != image_bytes(light)
    assert image_bytes(light) == image_bytes(open_image(light))


def test_a_photo_is_turned_on_request(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    COLORS.save(tmp_path / "photo.png", exif=exif)
    assert open_image(tmp_path / "photo.png").size == (8, 6)
    assert np.array_equal(
        open_image(tmp_path / "photo.png", upright=True), COLORS.transpose(Image.Transpose.ROTATE_270)
    )


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(10))
def test_a_photo_is_turned_as_pil_would(orientation, suffix, tmp_path):
    exif, file = Image.Exif(), tmp_path / f"photo.{suffix}"
    exif[0x0112] = orientation
    COLORS.save(file, exif=exif)
    assert np.array_equal(open_image(file, upright=True), ImageOps.exif_transpose(Image.open(file)))


TRUNCATED = b"Exif\0\0II*\0"
# An orientation to turn by, and a colour map, a tag of numbers, that holds text: PIL cannot write it back.
ODD = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\1\0\0\0\6\0\0\0\x40\x01\2\0\4\0\0\0odd\0\0\0\0\0"


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(("exif", "size"), [(TRUNCATED, (8, 6)), (ODD, (6, 8))])
def test_a_photo_with_a_broken_exif_block_is_opened(exif, size, suffix, tmp_path):
    COLORS.save(tmp_path / f"photo.{suffix}", exif=exif)
    assert open_image(tmp_path / f"photo.{suffix}", upright=True).size == size


def test_a_tiff_file_whose_metadata_pil_cannot_read_is_refused(tmp_path):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info.tagtype[700], info[700] = 2, "XMP that is text, not bytes"
    COLORS.save(tmp_path / "picture.tif", tiffinfo=info)
    with pytest.raises(Refused, match="picture.tif cannot be read"):
        open_image(tmp_path / "picture.tif")


def test_a_large_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    COLORS.save(tmp_path / "picture.png")
    assert open_image(tmp_path / "picture.png", max_pixels=48).size == (8, 6)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    with pytest.raises(Refused, match="picture.png has 8 x 6 pixels, the limit is 47") as error:
        open_image(tmp_path / "picture.png", max_pixels=47)
    assert error.value.reason == "too large an image"


def test_a_picture_that_is_larger_than_its_header_tells_is_refused(tmp_path):
    stream = io.BytesIO()
    COLORS.save(stream, "PNG")
    fields = {(3, 60): b"\1\0", (3, 20): b"\1", (3, 30): b"\1", (3, 120): b"\5", (8, 10): stream.getvalue()}
    content = [bytes((28, *tag)) + len(value).to_bytes(2) + value for tag, value in fields.items()]
    (tmp_path / "picture.iim").write_bytes(b"".join(content) + bytes(5))
    assert open_image(tmp_path / "picture.iim", formats=("IPTC",)).size == COLORS.size
    with pytest.raises(Refused, match="has 8 x 6 pixels, the limit is 47"):
        open_image(tmp_path / "picture.iim", formats=("IPTC",), max_pixels=47)


@pytest.mark.parametrize("suffix", ["ico", "eps", "pdf"])
def test_other_formats_are_refused_unless_asked_for(suffix, tmp_path):
    COLORS.resize((16, 16)).save(tmp_path / f"image.{suffix}")
    with pytest.raises(Refused, match=f"image.{suffix} cannot be read: it is none of PNG, JPEG"):
        open_image(tmp_path / f"image.{suffix}")
    if suffix == "ico":
        assert open_image(tmp_path / f"image.{suffix}", formats=("ICO",)).size == (16, 16)


def test_what_pil_cannot_decode_is_refused(tmp_path):
    (tmp_path / "odd.dds").write_bytes(b"DDS " + (124).to_bytes(4, "little") + bytes(200))
    with pytest.raises(Refused, match="odd.dds cannot be read"):
        open_image(tmp_path / "odd.dds", formats=("DDS",))
