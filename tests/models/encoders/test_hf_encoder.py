import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from asvr.data.transforms import ImageTransform
from asvr.models.encoders import HFVisionEncoder

SIZES = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)
ARCHS = {
    "siglip": dict(model_type="siglip_vision_model", intermediate_size=24, image_size=16, **SIZES),
    "clip": dict(model_type="clip_vision_model", intermediate_size=24, image_size=16, **SIZES),
    "dinov2": dict(model_type="dinov2", image_size=16, **SIZES),
    "siglip2": dict(model_type="siglip2_vision_model", intermediate_size=24, num_patches=16, **SIZES),
}
TEXT = dict(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)


def pixels(count=2, side=16):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def randomise(model):
    """Norms and biases too: with their initial ones and zeros a left-out norm would not show."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def save_tower(kind, folder):
    torch.manual_seed(0)
    arch = dict(ARCHS[kind])
    tower = randomise(AutoModel.from_config(AutoConfig.for_model(arch.pop("model_type"), **arch)))
    tower.save_pretrained(folder)
    return tower


def tower_hidden_states(kind, tower, images):
    """Patch tokens after the embedding and after every block, read where the blocks are."""
    found = []
    blocks = next(m for m in tower.modules() if isinstance(m, torch.nn.ModuleList))
    handles = [blocks[0].register_forward_pre_hook(lambda _, args: found.append(args[0]))]
    handles += [
        block.register_forward_hook(lambda *a: found.append(a[2][0] if isinstance(a[2], tuple) else a[2]))
        for block in blocks
    ]
    inputs = dict(pixel_values=images)
    if kind == "siglip2":
        corners = [(y, x) for y in range(0, 16, 4) for x in range(0, 16, 4)]
        patches = [
            torch.stack([i[:, y : y + 4, x : x + 4].permute(1, 2, 0).flatten() for y, x in corners]) for i in images
        ]
        inputs = dict(
            pixel_values=torch.stack(patches),
            pixel_attention_mask=torch.ones(len(images), 16, dtype=torch.long),
            spatial_shapes=torch.tensor([[4, 4]] * len(images)),
        )
    with torch.no_grad():
        public = tower(**inputs, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    return [states[:, -16:] for states in found], [states[:, -16:] for states in public]


@pytest.mark.parametrize("kind", ARCHS)
def test_features_are_the_towers_hidden_states(kind, tmp_path):
    tower = save_tower(kind, tmp_path)
    by_block, public = tower_hidden_states(kind, tower, pixels())
    assert len(by_block) == 4
    for layer in (-1, -2, -4, 0, 1, 3):
        encoder = HFVisionEncoder(name=str(tmp_path), layer=layer).eval()
        with torch.no_grad():
            features_INE = encoder(pixels())
        assert features_INE.shape == (2, 16, 16) == (2, encoder.num_tokens, encoder.width)
        assert torch.allclose(features_INE, by_block[layer], atol=1e-5), layer
        if layer not in (-1, 3):
            assert torch.allclose(features_INE, public[layer], atol=1e-5), layer


def test_blocks_behind_the_layer_are_dropped():
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in HFVisionEncoder(arch=ARCHS["siglip"], layer=layer).parameters())
            for layer in (-1, -2, -3)
        ]
    assert sizes[0] - sizes[1] == sizes[1] - sizes[2] > 0


@pytest.mark.parametrize("layer", [-5, 4])
def test_a_layer_that_the_tower_does_not_have_is_refused(layer):
    with pytest.raises(ValueError, match=rf"layer={layer}: this tower has 3 blocks.*-4\.\.3"):
        HFVisionEncoder(arch=ARCHS["clip"], layer=layer)


def save_whole(kind, folder):
    torch.manual_seed(0)
    vision = {k: v for k, v in ARCHS[kind].items() if k != "model_type"}
    if kind == "siglip":
        config = SiglipConfig(text_config=TEXT, vision_config=vision)
        model = SiglipModel(config)
    else:
        config = CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=8)
        model = CLIPModel(config)
    randomise(model).save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_whole_models_and_vision_towers_alone_load_alike(kind, tmp_path):
    model = save_whole(kind, tmp_path / "whole")
    model.vision_model.save_pretrained(tmp_path / "alone")
    with torch.no_grad():
        wanted = model.vision_model(pixel_values=pixels(), output_hidden_states=True).hidden_states[-2][:, -16:]
        for folder in ("whole", "alone"):
            encoder = HFVisionEncoder(name=str(tmp_path / folder)).eval()
            assert torch.allclose(encoder(pixels()), wanted, atol=1e-5)
            assert encoder.source == str(tmp_path / folder)


@pytest.mark.parametrize("folder", ["whole", "alone"])
def test_a_missing_weight_is_an_error_that_names_it(folder, tmp_path):
    model = save_whole("siglip", tmp_path / "whole")
    model.vision_model.save_pretrained(tmp_path / "alone")
    file = tmp_path / folder / "model.safetensors"
    weights = load_file(file)
    key = next(k for k in weights if k.endswith("layers.1.mlp.fc1.weight") and "text" not in k)
    del weights[key]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing.*layers\.1\.mlp\.fc1\.weight") as error:
        HFVisionEncoder(name=str(tmp_path / folder))
    assert str(tmp_path / folder) in str(error.value)


def test_a_weight_of_another_shape_or_name_is_an_error(tmp_path):
    save_tower("siglip", tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    key = next(k for k in weights if k.endswith("layers.0.mlp.fc1.bias"))
    save_file(weights | {"surprise.weight": torch.zeros(2)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"unexpected.*surprise\.weight"):
        HFVisionEncoder(name=str(tmp_path))
    save_file(weights | {key: torch.zeros(5)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"mis-shaped.*layers\.0\.mlp\.fc1\.bias"):
        HFVisionEncoder(name=str(tmp_path))


def test_the_folders_configuration_wins_with_a_warning(tmp_path, caplog):
    save_whole("siglip", tmp_path)
    with caplog.at_level(logging.WARNING, logger="asvr"):
        same = HFVisionEncoder(name=str(tmp_path), arch=ARCHS["siglip"])
    assert same.width == 16 and not caplog.records
    with caplog.at_level(logging.WARNING, logger="asvr"):
        other = HFVisionEncoder(name=str(tmp_path), arch=dict(ARCHS["siglip"], hidden_size=32))
    assert other.width == 16
    (record,) = caplog.records
    assert "hidden_size=16 (config: 32)" in record.getMessage() and str(tmp_path) in record.getMessage()


def test_the_transform_comes_from_the_folder_then_the_family_then_the_config(tmp_path):
    save_tower("clip", tmp_path)
    family = HFVisionEncoder(name=str(tmp_path)).transform
    assert family.size == (16, 16) and family.center_crop and family.mean[0] == 0.48145466
    own = dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=2, do_center_crop=False)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(own))
    wanted = ImageTransform(size=(16, 16), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear")
    assert HFVisionEncoder(name=str(tmp_path)).transform == wanted
    mixed = HFVisionEncoder(name=str(tmp_path), transform=dict(std=[1.0, 1.0, 1.0])).transform
    assert mixed.std == (1.0, 1.0, 1.0) and mixed.mean == (0.1, 0.2, 0.3)


def test_an_unknown_family_needs_a_transform():
    arch = dict(model_type="vit", intermediate_size=24, image_size=16, **SIZES)
    with pytest.raises(ValueError, match=r"'vit'.*transform=dict\(mean"):
        HFVisionEncoder(arch=arch)
    given = dict(mean=[0.5] * 3, std=[0.5] * 3)
    assert HFVisionEncoder(arch=arch, transform=given)(pixels()).shape == (2, 16, 16)


def test_dtype_and_architecture_alone():
    encoder = HFVisionEncoder(arch=ARCHS["siglip"], dtype="bfloat16")
    assert encoder(pixels()).dtype == torch.bfloat16 and encoder.source is None
    with pytest.raises(ValueError, match="float8"):
        HFVisionEncoder(arch=ARCHS["siglip"], dtype="float8")
    with pytest.raises(ValueError, match="arch"):
        HFVisionEncoder(name=None)


def test_meta_device_without_weights():
    with torch.device("meta"):
        encoder = HFVisionEncoder(name="nowhere/at-all", arch=ARCHS["siglip2"], load_weights=False)
    assert encoder.grid == (4, 4) and all(p.is_meta for p in encoder.parameters())
