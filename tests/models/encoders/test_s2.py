"""S^2: one encoder at several scales."""

import pytest
import torch
import torch.nn.functional as F
from encoder_helpers import OTHER, TOWER
from PIL import Image

from asvr.models.encoders import S2


def built(scales=(1, 2), encoder=TOWER) -> S2:
    torch.manual_seed(0)
    return S2(encoder=dict(encoder), scales=list(scales)).eval()


def by_the_paper(encode, pixels, side: int, scales) -> torch.Tensor:
    """Image by image and crop by crop: interpolate, split, encode, put together, pool, concatenate. side: of the
    encoder's pixels."""
    rows = []
    for image in pixels:
        of_scales = []
        for scale in scales:
            whole = F.interpolate(image[None], size=(side * scale, side * scale), mode="bicubic")[0]
            lines = []
            for top in range(0, side * scale, side):
                crops = [whole[:, top : top + side, left : left + side] for left in range(0, side * scale, side)]
                maps = [encode(crop[None])[0] for crop in crops]  # (N, E)
                cells = round(len(maps[0]) ** 0.5)
                lines.append(torch.cat([one.view(cells, cells, -1) for one in maps], 1))
            joined = torch.cat(lines)  # (rows, columns, E)
            pooled = joined.view(cells, scale, cells, scale, -1).mean((1, 3))
            of_scales.append(pooled.flatten(0, 1))
        rows.append(torch.cat(of_scales, -1))
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize("scales", [(1, 2), (1, 2, 3), (2,), (3, 1)])
def test_features_are_the_papers(scales):
    encoder = built(scales)
    side = 8 * max(scales)
    assert encoder.transform.size == (side, side) and encoder.grid == (2, 2) and encoder.width == 8 * len(scales)
    pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    features = encoder(pixels)
    assert features.shape == (3, encoder.num_tokens, encoder.width)
    torch.testing.assert_close(features, by_the_paper(encoder.encoder, pixels, 8, scales), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_scale_is_the_encoder():
    encoder = built((1,))
    pixels = encoder.transform(Image.new("RGB", (20, 30), (1, 200, 30)))[None]
    assert torch.equal(encoder(pixels), encoder.encoder(pixels))


@pytest.mark.parametrize("scales", [[], [0, 1], [1, 1.5], [2, 2], [True]])
def test_other_scales_are_refused(scales):
    with pytest.raises(ValueError, match="expected different integers"):
        built(scales)


def test_an_encoder_of_several_images_is_refused():
    with pytest.raises(ValueError, match="MultiEncoder does not take one image of a fixed size"):
        built(encoder=dict(type="MultiEncoder", encoders=[TOWER, OTHER], resample="area"))


def test_it_is_trained_and_told_by_its_encoder(tmp_path):
    encoder = built()
    encoder(torch.randn(1, 3, 16, 16)).sum().backward()
    assert any(p.grad is not None for p in encoder.encoder.parameters())
    assert encoder.portable(dict(type="S2", encoder=dict(TOWER, name="a/b"), scales=[1, 2]))["encoder"].keys() == {
        *("type", "arch", "transform")
    }
    assert encoder.blocks == encoder.encoder.blocks and encoder.source is None
