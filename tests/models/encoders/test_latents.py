"""A VAE's latents as features, against diffusers' own calls."""

import sys

import pytest
import torch

from asvr.models.encoders import LatentEncoder
from asvr.recipe.components import check_component
from asvr.registry import ENCODERS

diffusers = pytest.importorskip("diffusers", reason="LatentEncoder needs it: pip install -e '.[diffusion]'")

ARCH = dict(block_out_channels=[8, 8], norm_num_groups=4, latent_channels=3, scaling_factor=0.5, shift_factor=0.25)


def build(**fields) -> LatentEncoder:
    torch.manual_seed(0)
    return LatentEncoder(**dict(dict(image_size=16, arch=ARCH), **fields)).eval()


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_latents_are_the_mean_of_the_posterior_shifted_and_scaled(pixels):
    encoder = build()
    mean = encoder.model.encode(pixels).latent_dist.mean
    expected = (mean - 0.25) * 0.5  # (2, 3, 8, 8)
    found = encoder(pixels)
    assert found.shape == (2, 16, 12) and encoder.grid == (4, 4) and encoder.width == 12
    for row in range(4):
        for column in range(4):
            group = expected[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(found[:, 4 * row + column], group.flatten(1))


@torch.no_grad()
def test_latents_of_a_vae_that_states_mean_and_deviation_of_each_channel(pixels):
    own = dict(latents_mean=[0.1, 0.2, 0.3], latents_std=[1.0, 2.0, 4.0])
    encoder = build(arch=ARCH | own)
    mean = encoder.model.encode(pixels).latent_dist.mean
    for channel in range(3):
        expected = (mean[:, channel] - own["latents_mean"][channel]) * 0.5 / own["latents_std"][channel]
        found = encoder(pixels).unflatten(2, (3, 4))[:, :, channel]  # (2, 16, 4)
        torch.testing.assert_close(found.sum((1, 2)), expected.sum((1, 2)))


@pytest.mark.parametrize("own", [{}, dict(latents_mean=[0.1, 0.2, 0.3], latents_std=[1.0, 2.0, 4.0])])
@torch.no_grad()
def test_latents_are_decoded_as_diffusers_decodes_the_mean(own, pixels):
    encoder = build(arch=ARCH | own)
    mean = encoder.model.encode(pixels).latent_dist.mean
    torch.testing.assert_close(encoder.decode(encoder(pixels)), encoder.model.decode(mean).sample.clamp(-1, 1))


@torch.no_grad()
def test_a_saved_folder_is_diffusers_own(pixels, tmp_path):
    encoder = build()
    encoder.save_pretrained(tmp_path / "pipeline" / "vae")
    again = LatentEncoder(name=str(tmp_path / "pipeline"), subfolder="vae", grid=[4, 4])
    assert torch.equal(again(pixels), encoder(pixels)) and again.fingerprint() == encoder.fingerprint()
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "pipeline" / "vae")
    assert torch.equal(theirs.encode(pixels).latent_dist.mean, encoder.model.encode(pixels).latent_dist.mean)
    given = dict(type="LatentEncoder", name=str(tmp_path), subfolder="vae", grid=[4, 4])
    portable = again.portable(given)
    assert portable.keys() == {"type", "grid", "arch"} and portable["arch"].items() >= ARCH.items()
    rebuilt = ENCODERS.build(portable)
    rebuilt.load_state_dict(again.state_dict())
    assert torch.equal(rebuilt.eval()(pixels), encoder(pixels))


def test_the_fingerprint_tells_another_scale_and_group():
    prints = {
        build().fingerprint(),
        build(group=1).fingerprint(),
        build(arch=ARCH | dict(scaling_factor=1)).fingerprint(),
    }
    assert len(prints) == 3 and build().fingerprint() in prints


def test_a_folder_wins_over_arch_and_says_so(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("asvr.models.encoders.latents.log_once", lambda _, text, *given: told.append(text % given))
    build().save_pretrained(tmp_path)
    encoder = LatentEncoder(name=str(tmp_path), image_size=16, arch=ARCH | dict(scaling_factor=9.0))
    assert encoder.model.config.scaling_factor == 0.5
    assert len(told) == 1 and "scaling_factor=0.5 (config: 9.0)" in told[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            dict(arch=ARCH | dict(latent_channel=3)),
            "arch.latent_channel: AutoencoderKL has no such field.*latent_channels",
        ),
        (
            dict(arch=ARCH | dict(norm_num_groups=3)),
            "arch: diffusers cannot build an AutoencoderKL from it: .*divisible",
        ),
        (dict(arch=ARCH | dict(up_block_types=["UpDecoderBlock2D"])), "arch.up_block_types: expected 2 blocks"),
        (dict(image_size=18), "image_size=18: expected a multiple of 4, such as 16"),
        (dict(image_size=None), "give either image_size .* or grid"),
        (dict(grid=(4, 4)), "give either image_size .* or grid"),
    ],
)
def test_what_makes_no_vae_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        build(**fields)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    with pytest.raises(ValueError, match="'FluxTransformer2DModel', expected 'AutoencoderKL'.*subfolder='vae'"):
        LatentEncoder(name=str(tmp_path), image_size=16)


@pytest.mark.parametrize("keys", ["missing", "shape"])
def test_weights_of_another_vae_are_refused(keys, tmp_path):
    from safetensors.torch import load_file, save_file

    build().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    if keys == "missing":
        del weights["encoder.conv_in.weight"]
    else:
        weights["encoder.conv_in.weight"] = torch.zeros(9, 3, 3, 3)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="VAE.*encoder.conv_in.weight"):
        LatentEncoder(name=str(tmp_path), image_size=16)


def test_without_diffusers_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"^LatentEncoder needs diffusers.*pip install 'asvr\[diffusion\]'") as error:
        build()
    assert "\n" not in str(error.value)


def test_a_config_is_not_checked_as_one_of_transformers():
    assert check_component("encoder", dict(type="LatentEncoder", arch=ARCH), ENCODERS) == []
    wrong = check_component("encoder", dict(type="LatentEncoder", sub_folder="vae"), ENCODERS)
    assert len(wrong) == 1 and "did you mean 'subfolder'" in wrong[0]
