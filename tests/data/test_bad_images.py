"""Unusual images are read as they should be, broken ones are refused in words: none crashes, hangs or explodes."""

import os
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bad_images import COLORS, SMALL, animated, bomb, encoded, png, rgb_16, write
from data_helpers import FixedTokens
from PIL import Image, ImageFile

from asvr.caches.codes import hash_images
from asvr.caches.features import folder_of, pixel_batches
from asvr.data.batch import IGNORE, IMAGE_TOKEN
from asvr.data.images import MAX_PIXELS, MAX_SIDE, check_file, open_image
from asvr.data.refusals import Refused
from asvr.data.transforms import ASPECTS, LONGEST_SIDE, ImageTransform
from asvr.flops.peak_rate import resident_bytes
from asvr.recipe.build import build_collate
from asvr.recipe.fields import check_fields
from asvr.recipe.schema import SECTIONS

RED, BLUE = (Image.new("RGB", (16, 12), color) for color in ("red", "blue"))


def first_pixel(file):
    return open_image(file).getpixel((0, 0))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File")
@pytest.mark.parametrize("suffix", SMALL)
def test_no_cut_is_accepted_silently(suffix, tmp_path):
    whole = encoded(suffix)
    expected = np.asarray(open_image(write(tmp_path, "whole", whole)))
    refused = 0
    for size in range(0, len(whole), 3):
        try:
            found = open_image(write(tmp_path, "cut", whole[:size]))
        except Refused as error:
            assert "cut cannot be read" in str(error) and error.reason == "unreadable image"
            refused += 1
        else:
            assert np.array_equal(found, expected)  # what is missing is behind the pixels
    assert refused > len(whole) / 3 * 0.8


@pytest.mark.parametrize("name", ["picture.png", "picture.txt", "picture"])
def test_the_content_decides_not_the_name(name, tmp_path):
    """Data sets are full of JPEG files called .png, and the released code reads them."""
    assert open_image(write(tmp_path, name, encoded("jpg"))).size == COLORS.size


def test_a_cmyk_photo_keeps_its_white(tmp_path):
    white = Image.new("RGB", (8, 8), "white")
    assert first_pixel(write(tmp_path, "a.jpg", encoded("jpg", white.convert("CMYK")))) == (255, 255, 255)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 128, 255, 7])])
def test_a_palette_gives_its_colors_whatever_is_transparent(transparency, tmp_path):
    palette = COLORS.quantize(4)
    options = {} if transparency is None else dict(transparency=transparency)
    found = open_image(write(tmp_path, "a.png", encoded("png", palette, **options)))
    assert np.array_equal(found, palette.convert("RGB"))


def test_16_bits_keep_their_upper_eight(tmp_path):
    values = np.arange(0, 65536, 1366, dtype=np.uint16).reshape(4, 4, 3)
    assert np.array_equal(open_image(write(tmp_path, "a.png", rgb_16(values))), values >> 8)
    assert np.array_equal(
        np.asarray(open_image(write(tmp_path, "b.png", encoded("png", Image.fromarray(values[..., 0])))))[..., 0],
        values[..., 0] >> 8,
    )


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_grey_is_refused_since_nothing_says_what_white_is(mode, tmp_path):
    with pytest.raises(Refused, match="grey.tif cannot be read: .*32-bit grey"):
        open_image(write(tmp_path, "grey.tif", encoded("tif", COLORS.convert("L").convert(mode))))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_taken(suffix, tmp_path):
    file = write(tmp_path, f"a.{suffix}", animated(suffix, [RED, BLUE]))
    with Image.open(file) as image:
        assert image.n_frames == 2
    assert first_pixel(file) in ((255, 0, 0), (254, 0, 0))  # a palette's red, or itself


@pytest.mark.parametrize("size", [(1, 1), (30_000, 10), (10, 30_000), (MAX_SIDE, 1)])
@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("crop", [False, True])
def test_odd_shapes_take_no_more_memory_than_a_large_square(size, aspect, crop):
    view = ImageTransform(size=(24, 24), mean=(0, 0, 0), std=(1, 1, 1), center_crop=crop)
    image = Image.new("RGB", size, "white")
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident size counts from here
    before = resident_bytes()
    pixels = view(image, aspect)
    assert pixels.shape == (3, 24, 24) and (aspect == "pad" or pixels.max() == 1)
    assert resident_bytes() - before < 1.2 * 4 * LONGEST_SIDE**2


@pytest.mark.parametrize("size", [(9000, 30), (30, 9000)])
def test_a_long_picture_is_cropped_as_if_it_were_made_whole(size, monkeypatch):
    image = COLORS.resize(size)
    view = ImageTransform(size=(60, 60), center_crop=True)
    short = view(image)
    monkeypatch.setattr("asvr.data.transforms.LONGEST_SIDE", 10**6)
    assert (short - view(image)).abs().max() < 0.02


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    file = write(tmp_path, "bomb.png", bomb(20_000, 6_000))
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    tracemalloc.start()
    with pytest.raises(Refused, match=f"bomb.png has 20000 x 6000 pixels, the limit is {MAX_PIXELS:,}") as error:
        open_image(file)
    assert error.value.reason == "too large an image" and tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    with pytest.raises(Refused, match="bomb.png is too large, the limit is 100,000,000"):
        open_image(write(tmp_path, "bomb.png", bomb()))


def test_a_line_of_pixels_is_refused(tmp_path):
    long = png(MAX_SIDE + 1, 1, depth=1, color=0, rows=bytes(1 + (MAX_SIDE + 8) // 8))
    with pytest.raises(Refused, match="long.png has 65536 x 1 pixels, the limit of a side is 65,535"):
        open_image(write(tmp_path, "long.png", long))


def test_no_pixels_are_no_picture(tmp_path):
    with pytest.raises(Refused, match="none.png"):
        open_image(write(tmp_path, "none.png", png(0, 5, depth=8, color=0, rows=b"")))
    with pytest.raises(Refused, match="in memory has 0 x 4 pixels"):
        open_image(Image.new("RGB", (0, 4)))


def test_a_name_that_the_locale_cannot_write_is_no_fault_of_the_image(tmp_path, monkeypatch):
    def stat(path, *args, **kwargs):
        str(path).encode("ascii")

    monkeypatch.setattr("asvr.data.images.os.stat", stat)
    with pytest.raises(
        ValueError, match=r"\\u56fe.png' is no name of a file under this locale.*set PYTHONUTF8=1"
    ) as error:
        check_file(tmp_path / "图.png")
    assert not isinstance(error.value, Refused)  # which `on_error='skip'` would leave out


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    write(tmp_path, "empty.png", b"")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for file, why in {
        tmp_path / "pipe.png": "no regular file",
        tmp_path / "folder.png": "no regular file",
        "/dev/zero": "no regular file",
        tmp_path / "empty.png": "empty",
        tmp_path / "no.png": "is missing",
        tmp_path / "empty.png" / "a.png": "is missing",
        tmp_path / "loop.png": "symbolic links",
        tmp_path / ("a" * 300): "File name too long",
        f"{tmp_path}/a\0b.png": "null byte",
        f"{tmp_path}/\udc80\ud800.png": "surrogates not allowed",
    }.items():
        for look in (open_image, check_file):
            with pytest.raises(Refused, match=why) as error:
                look(file)
            assert str(error.value).isprintable()  # a terminal's or a log file's undoing otherwise


def test_caches_do_not_wait_for_a_pipe_either(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    pictures = dict(pipe=tmp_path / "pipe.png", none=tmp_path / "no.png", grey=Image.new("F", (2, 2)), good=RED)
    encoder = SimpleNamespace(fingerprint=lambda: "", transform="")
    for name in (folder_of(tmp_path, encoder, pictures, "square", {}), hash_images(tmp_path, pictures)["pipe"]):
        assert name
    refused = {}
    (batch,) = pixel_batches(list(pictures), pictures, [ImageTransform(size=(2, 2))], "square", refused=refused)
    assert batch[0] == ["good"] and [reason for _, reason in refused.values()] == [
        "unreadable image",
        "missing image",
        "unreadable image",
    ]


def test_the_limit_of_pixels_is_the_configs(tmp_path):
    data = SimpleNamespace(image_aspect="square", max_length=9, on_error="skip", max_pixels=191)
    model = SimpleNamespace(layout=FixedTokens(1), views=lambda: dict(encoder=ImageTransform(size=(2, 2))), targets=[])
    item = dict(input_ids=[IMAGE_TOKEN], labels=[IGNORE], images=[RED], image_keys=["a"], sample_id="mine:0")
    (refusal,) = build_collate(data, model, SimpleNamespace(pad_id=0))([item]).refusals
    assert (refusal.reason, refusal.sample_id) == ("too large an image", "mine:0") and "191" in refusal.message
    data.max_pixels = None
    assert not build_collate(data, model, SimpleNamespace(pad_id=0))([item]).refusals
    assert check_fields("data", dict(max_pixels=10**9), dict(max_pixels=SECTIONS["data"]["max_pixels"]))


def test_a_broken_picture_in_memory_is_refused_too(tmp_path):
    broken = Image.open(write(tmp_path, "a.png", encoded("png")[:-60]))
    with pytest.raises(Refused, match="the image in memory cannot be read"):
        open_image(broken)
    with pytest.raises(Refused, match="in memory has 16 x 12 pixels, the limit is 100"):
        open_image(COLORS, max_pixels=100)


@pytest.mark.parametrize("error", [MemoryError, EOFError, IndexError, AssertionError])
def test_whatever_a_parser_raises_is_a_refusal_with_its_name(error, tmp_path, monkeypatch):
    def load(self):
        raise error("deep inside")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(Refused, match=f"a.png cannot be read: {error.__name__}: deep inside"):
        open_image(write(tmp_path, "a.png", encoded("png")))
