"""Several encoders as one."""

import logging

import pytest
import torch
from encoder_helpers import DINO, OTHER, PIXEL, SIGLIP, TOWER, save_tower
from PIL import Image

from asvr.base.log_once import forget
from asvr.data.transforms import ImageTransform, JoinedTransform, blank_pixels, stacked
from asvr.models.component import fingerprint, fingerprint_of
from asvr.models.encoders import Encoder, MultiEncoder
from asvr.models.parameter_groups import layer_factors
from asvr.registry import ENCODERS


def built(encoders=(TOWER, OTHER), **kwargs) -> MultiEncoder:
    torch.manual_seed(0)
    return MultiEncoder(encoders=[dict(one) for one in encoders], **kwargs).eval()


def image(seed: int = 0) -> Image.Image:
    array = torch.randint(0, 256, (20, 26, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(array.numpy())


def pixels(encoder) -> dict:
    return stacked([encoder.transform(image(seed)) for seed in range(2)])


@torch.no_grad()
def test_features_side_by_side_are_those_of_each_encoder_on_the_first_grid():
    encoder = built(resample="bilinear")
    features = encoder(pixels(encoder))
    assert features.shape == (2, 4, 20) == (2, encoder.num_tokens, encoder.width) and encoder.grid == (2, 2)
    first, second = encoder.encoders
    own = [torch.stack([part.transform(image(seed)) for seed in range(2)]) for part in encoder.encoders]
    assert [tuple(one.shape[2:]) for one in own] == [(8, 8), (12, 12)]
    assert torch.equal(features[..., :8], first(own[0]))
    maps = second(own[1]).view(2, 3, 3, 12)
    corners = features[..., 8:].view(2, 2, 2, 12)
    expected = sum(  # the middle of the first of 2 cells is at 0.25 of the second of 3 cells
        weight_y * weight_x * maps[:, y, x]
        for y, weight_y in ((0, 0.75), (1, 0.25))
        for x, weight_x in ((0, 0.75), (1, 0.25))
    )
    torch.testing.assert_close(corners[:, 0, 0], expected)


@torch.no_grad()
def test_a_sequence_has_the_tokens_of_each_encoder_in_channels_of_its_own():
    encoder = built(join="sequence")
    features = encoder(pixels(encoder))
    assert encoder.grids == [(2, 2), (3, 3)] and encoder.grid == (2, 2)
    assert features.shape == (2, 13, 20) == (2, encoder.num_tokens, encoder.width)
    first, second = (part(pixels(encoder)[str(i)]) for i, part in enumerate(encoder.encoders))
    assert torch.equal(features[:, :4, :8], first) and torch.equal(features[:, 4:, 8:], second)
    assert not features[:, :4, 8:].any() and not features[:, 4:, :8].any()


@torch.no_grad()
def test_features_are_added_and_one_transform_makes_pixels_once():
    encoder = built((TOWER, TOWER), join="add")
    given = pixels(encoder)
    assert given.keys() == {"0"} and encoder.width == 8
    first, second = encoder.encoders
    assert torch.equal(encoder(given), first(given["0"]) + second(given["0"]))


def test_the_joined_transform_is_told_by_its_parts():
    one, other = built(resample="bilinear").transform, built(resample="area").transform
    assert one == other and hash(one) == hash(other) and one.size == (12, 12) and one.shown.size == (8, 8)
    assert one != JoinedTransform((*one.parts[:1], ImageTransform(size=(12, 12))))
    assert {key: tuple(value.shape) for key, value in one.blank(3).items()} == {"0": (3, 3, 8, 8), "1": (3, 3, 12, 12)}
    assert one(image(), "pad").keys() == {"0", "1"}


class Native(Encoder):
    def __init__(self, load_weights: bool = True):
        super().__init__()
        self.width, self.grid, self.transform = 8, (2, 2), type("AnySize", (), {"grid_of": None})()


@pytest.mark.parametrize(
    "encoders, options, told",
    [
        ((TOWER, OTHER), {}, r"grids are 2x2 and 3x3: choose .* or set resample='bilinear'"),
        ((TOWER, OTHER), dict(join="add", resample="area"), r"widths must agree, but they are \[8, 12\]"),
        ((TOWER, OTHER), dict(join="sequence", resample="area"), "leave it out"),
        ((TOWER, OTHER), dict(join="beside"), "join='beside': expected one of 'channel', 'sequence', 'add'"),
        ((TOWER, OTHER), dict(resample="cubic"), "resample='cubic': expected one of 'bilinear'"),
        ((TOWER,), {}, "expected at least 2"),
        ((TOWER, dict(type=Native)), {}, r"encoders\[1\]: Native reads images in their own resolution"),
        (
            (TOWER, dict(type="MultiEncoder", encoders=[TOWER, OTHER], join="sequence")),
            dict(resample="area"),
            r"encoders\[1\] has several grids",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(encoders, options, told):
    with pytest.raises(ValueError, match=told) as error:
        built(encoders, **options)
    assert "\n" not in str(error.value)


def test_what_has_no_effect_or_shows_other_places_is_told(caplog):
    forget()
    with caplog.at_level(logging.WARNING, "asvr"):
        built((TOWER, TOWER), resample="area")
        built((TOWER, dict(OTHER, transform=None)), resample="area")
    assert "has no effect: all grids are 2x2" in caplog.text
    assert "does not show the same place" in caplog.text


def test_encoders_may_be_nested():
    encoder = built((TOWER, dict(type="MultiEncoder", encoders=[TOWER, OTHER], join="sequence")), join="sequence")
    assert encoder.grids == [(2, 2), (2, 2), (3, 3)] and encoder.width == 28
    given = pixels(encoder)
    assert given.keys() == {"0", "1"} and given["1"].keys() == {"0", "1"}
    features = encoder(given)
    assert features.shape == (2, 17, 28)


def test_weights_without_a_file_stand_apart(tmp_path):
    folder = save_tower(tmp_path, SIGLIP)
    mixed = built((dict(TOWER, name=folder), OTHER), resample="area")
    assert mixed.source == folder and mixed.apart == {
        key for key in mixed.state_dict() if key.startswith("encoders.1.")
    }
    alone = built(resample="area")
    assert alone.source is None and not alone.apart
    files = [folder, save_tower(tmp_path / "other", DINO)]
    both = built((dict(TOWER, name=files[0]), dict(OTHER, name=files[1])), resample="area")
    assert both.source == "; ".join(files) and not both.apart
    config = dict(type="MultiEncoder", encoders=[dict(TOWER, name=files[0]), dict(OTHER, name=files[1])])
    assert [one["arch"]["model_type"] for one in both.portable(config)["encoders"]] == ["siglip_vision_model", "dinov2"]
    assert files[0] not in str(both.portable(config))


def test_a_frozen_part_stays_as_a_frozen_encoder():
    encoder = built(resample="area")
    encoder.encoders[0].requires_grad_(False)
    encoder.train()
    assert not encoder.encoders[0].training and encoder.encoders[1].training and encoder.training
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder(pixels(encoder))
    with torch.no_grad():
        assert torch.equal(features[..., :8], encoder.encoders[0](pixels(encoder)["0"]))
    features.float().sum().backward()
    assert all(p.grad is None for p in encoder.encoders[0].parameters())
    assert any(p.grad is not None for p in encoder.encoders[1].parameters())


def test_layers_decay_in_each_encoder():
    encoder = built(resample="area")
    factors = layer_factors("encoder", encoder, 0.5)
    assert len(factors) == len(list(encoder.parameters()))
    for part in encoder.encoders:
        own = layer_factors("encoder", part, 0.5)
        assert all(factors[parameter] == factor for parameter, factor in own.items())
    assert len(encoder.blocks) == 1 + 2
    with pytest.raises(ValueError, match="MultiEncoder has no `blocks`"):
        layer_factors("encoder", built([dict(type="CodeEncoder", tokenizer=PIXEL, width=4)] * 2), 0.5)


def test_the_fingerprint_is_of_all_that_decides():
    first, second = built(resample="area"), built(resample="area")
    assert fingerprint_of(first) == fingerprint_of(second) == fingerprint(first)
    with torch.no_grad():
        next(second.encoders[1].parameters()).add_(1)
    assert fingerprint_of(first) != fingerprint_of(second)
    codes = dict(type="CodeEncoder", tokenizer=PIXEL)
    raw = dict(codes, tokenizer=dict(PIXEL, arch=dict(PIXEL["arch"], unit_vectors=False)))
    one, other = built([codes, codes]), built([codes, raw])
    assert fingerprint(one) == fingerprint(other) and fingerprint_of(one) != fingerprint_of(other)


def test_it_builds_without_memory():
    with torch.device("meta"):
        encoder = ENCODERS.build(
            dict(type="MultiEncoder", encoders=[TOWER, OTHER], join="sequence"), default_args=dict(load_weights=False)
        )
        assert encoder(blank_pixels(encoder.transform, 1)).shape == (1, 13, 20)
