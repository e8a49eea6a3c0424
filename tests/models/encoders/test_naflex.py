"""The NaFlex encoder against transformers' own forward pass with the inputs of its own processor."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Siglip2VisionConfig, Siglip2VisionModel
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from asvr.data.transforms import blank_pixels, move, stacked
from asvr.flops.count import flops_of_pixels
from asvr.models.attention import set_kernel
from asvr.models.encoders import HFVisionEncoder, NaFlexEncoder
from asvr.models.encoders.naflex import _resized
from asvr.registry import ENCODERS

ARCH = dict(
    model_type="siglip2_vision_model",
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_patches=25,
    patch_size=4,
)
MOST = 12
SIZES = [(40, 20), (30, 30), (300, 3), (12, 13)]  # one of a single row, one that is padded most


def images() -> list[Image.Image]:
    random = np.random.RandomState(0)
    return [Image.fromarray(random.randint(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


def build(**own) -> NaFlexEncoder:
    torch.manual_seed(0)
    return NaFlexEncoder(**dict(arch=ARCH, max_num_patches=MOST) | own)


def pixels(encoder: NaFlexEncoder) -> dict:
    return stacked([encoder.transform(image) for image in images()])


@pytest.fixture
def folder(tmp_path):
    """A tower with its processor's file."""
    torch.manual_seed(0)
    config = Siglip2VisionConfig(**{key: value for key, value in ARCH.items() if key != "model_type"})
    Siglip2VisionModel(config).save_pretrained(tmp_path)
    Siglip2ImageProcessorPil(patch_size=4, max_num_patches=MOST).save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
@pytest.mark.parametrize("layer", [-1, -2, 0, [1, -1]])
def test_features_are_those_of_transformers(folder, layer):
    encoder = build(name=str(folder), arch=None, layer=layer).eval()
    processor = Siglip2ImageProcessorPil.from_pretrained(folder)
    inputs = processor(images(), return_tensors="pt")
    whole = Siglip2VisionModel.from_pretrained(folder).eval()
    states = whole(**inputs, output_hidden_states=True).hidden_states
    expected = torch.cat([states[i] for i in (layer if isinstance(layer, list) else [layer])], -1)
    there = inputs["pixel_attention_mask"].bool()
    found = encoder(pixels(encoder))
    assert found.shape == (len(SIZES), MOST, encoder.width) == (len(SIZES), encoder.num_tokens, expected.shape[-1])
    torch.testing.assert_close(found[there], expected[there], rtol=1e-5, atol=1e-5)
    assert not found[~there].any() and (~there).any()


@torch.no_grad()
def test_an_image_is_the_same_alone_and_beside_others():
    encoder = build().eval()
    together = encoder(pixels(encoder))
    for i, image in enumerate(images()):
        alone = encoder(stacked([encoder.transform(image)]))[0]
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-6)


@torch.no_grad()
def test_what_stands_in_the_padding_moves_nothing():
    encoder = build().eval()
    made = pixels(encoder)
    before = encoder(made)
    there = encoder.there(made)
    made["patches"][~there] = 1e3
    assert torch.equal(encoder(made), before)


@pytest.mark.parametrize("grid", [(1, 12), (3, 4), (2, 3), (7, 7), (5, 5), (2, 9)])
def test_positions_are_resized_as_torch_does(grid):
    weight = torch.randn(25, 6)
    square = weight.view(5, 5, 6).permute(2, 0, 1)[None]
    expected = F.interpolate(square, size=grid, mode="bilinear", antialias=True)[0].flatten(1).T
    count = grid[0] * grid[1]
    found = _resized(weight, torch.tensor([grid]), count + 2)[0]
    torch.testing.assert_close(found[:count], expected)
    assert torch.equal(found[count], found[count - 1])  # behind them finite numbers, whatever they are


def test_positions_of_one_column_are_those_of_one_row_turned():
    """torch's own resizing gives others on the CPU, see the function."""
    weight = torch.randn(25, 6)
    turned = weight.view(5, 5, 6).transpose(0, 1).reshape(25, 6)
    found = [_resized(w, torch.tensor([grid]), 8) for w, grid in ((weight, (8, 1)), (turned, (1, 8)))]
    torch.testing.assert_close(*found)


def test_a_trained_tower_gets_gradients_and_the_padding_none():
    encoder = build(layer=-1).train()
    made = pixels(encoder)
    made["patches"].requires_grad_()
    encoder(made).square().sum().backward()
    there = encoder.there(made)
    assert made["patches"].grad[there].any() and not made["patches"].grad[~there].any()
    assert encoder.model.embeddings.position_embedding.weight.grad.any()


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "varlen", "xformers"])
def test_every_kernel_leaves_masked_rows_to_sdpa(kernel):
    """The others need CUDA, and know no mask."""
    encoder = build().eval()
    before = encoder(pixels(encoder))
    set_kernel(encoder, kernel)
    torch.testing.assert_close(encoder(pixels(encoder)), before, rtol=0, atol=1e-6)


def test_checkpointed_blocks_give_the_same_gradients():
    found = []
    for mode in ("none", "full"):
        encoder = build(activation_checkpointing=mode).train()
        encoder(pixels(encoder)).square().sum().backward()
        found.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) and all(torch.equal(*pair) for pair in zip(*found, strict=True))


@torch.no_grad()
def test_weights_may_be_half_precision():
    whole, half = build().eval(), build(dtype="bfloat16").eval()
    half.load_state_dict(whole.state_dict())
    found = half(pixels(half))
    assert found.dtype == torch.bfloat16
    difference = (found.float() - whole(pixels(whole))).norm() / found.float().norm()
    assert difference < 0.02


def test_it_runs_without_numbers_and_is_counted():
    with torch.device("meta"):
        encoder = NaFlexEncoder(arch=ARCH, max_num_patches=MOST)
    assert encoder(move(blank_pixels(encoder.transform, 2), torch.device("meta"))).shape == (2, MOST, 16)
    norms = 2 * 2 * 5 * MOST * 16  # fvcore's, five a number
    block = 2 * MOST * (4 * 16 * 16 + 2 * 16 * 24) + 2 * 2 * MOST * MOST * 16 + norms
    around = 2 * MOST * 4 * 4 * 3 * 16 + 2 * MOST * 25 * 16  # patches, and resized positions
    assert flops_of_pixels(encoder, encoder) == 2 * block + around
    real = build()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert real(blank_pixels(real.transform, 2)).shape == (2, MOST, 16)


def test_nothing_waits_for_the_device():
    """The meta device has no numbers to wait for: a host that looks at one gets an error there."""
    with torch.device("meta"):
        encoder = NaFlexEncoder(arch=ARCH, max_num_patches=MOST).train()
        encoder(blank_pixels(encoder.transform, 2)).sum().backward()
    assert encoder.model.embeddings.position_embedding.weight.grad is not None


def test_a_portable_config_builds_the_same(folder):
    own = dict(name=str(folder), max_num_patches=9, layer=-1, transform=dict(mean=[0.4, 0.4, 0.4]))
    encoder = NaFlexEncoder(**own)
    assert encoder.transform.interpolation == "bilinear" and encoder.transform.mean == (0.4, 0.4, 0.4)
    config = encoder.portable(dict(own, type="NaFlexEncoder"))
    again = ENCODERS.build(config)
    assert "name" not in config and again.transform == encoder.transform and again.grid == encoder.grid == (3, 3)
    again.load_state_dict(encoder.state_dict())


def test_the_fixed_encoder_of_such_a_tower_is_as_it_was():
    fixed = HFVisionEncoder(arch=ARCH)
    assert fixed.transform.interpolation == "bicubic" and fixed.transform.size == (20, 20)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (dict(max_num_patches=0), "encoder.max_num_patches=0: expected at least 1"),
        (dict(transform=dict(center_crop=True)), "encoder.transform.center_crop: expected only mean, std"),
        (dict(transform=dict(size=[8, 8])), "encoder.transform.size: expected only mean, std and interpolation"),
        (
            dict(arch=dict(ARCH, model_type="siglip_vision_model", image_size=8)),
            "NaFlexEncoder needs a siglip2_vision_model, but this is a siglip_vision_model: use type='HFVisionEncoder'",
        ),
    ],
)
def test_what_it_cannot_be_is_told(own, message):
    with pytest.raises(ValueError, match=message):
        build(**own)
