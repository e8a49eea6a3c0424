"""Vision towers in their real layout: what docs/guides/models.md says of each family."""

import json

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    Aimv2Config,
    Aimv2Model,
    AutoConfig,
    AutoModel,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    InternVLConfig,
    InternVLForConditionalGeneration,
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from vlm_helpers import LLAMA, VOCAB, collate, gradients_of, row

from asvr.models.encoders import S2, HFVisionEncoder, MultiEncoder, NaFlexEncoder, TimmEncoder
from asvr.models.encoders.huggingface import _blocks
from asvr.models.vlm import VLM

SIZES = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=12, patch_size=4)
INNER = dict(SIZES, intermediate_size=24)
PIXELS = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
HALF, CLIP, IMAGENET = (0.5, 0.5), (0.48145466, 0.26862954), (0.485, 0.229)  # mean and std of red
TEXT = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=40)
# Configuration, tokens in front of the patches, and the transform without a preprocessor file.
FAMILIES = {
    "siglip": (dict(INNER, model_type="siglip_vision_model"), 0, (*HALF, False, "bicubic")),
    "siglip2": (dict(INNER, model_type="siglip_vision_model", layer_norm_eps=1e-6), 0, (*HALF, False, "bicubic")),
    "siglip2-naflex": (
        dict({k: v for k, v in INNER.items() if k != "image_size"}, model_type="siglip2_vision_model", num_patches=9),
        0,
        (*HALF, False, "bicubic"),
    ),
    "clip": (dict(INNER, model_type="clip_vision_model", hidden_act="quick_gelu"), 1, (*CLIP, True, "bicubic")),
    "dinov2": (dict(SIZES, model_type="dinov2", use_swiglu_ffn=True), 1, (*IMAGENET, True, "bicubic")),
    "dinov2-registers": (
        dict(SIZES, model_type="dinov2_with_registers", num_register_tokens=4),
        5,
        (*IMAGENET, True, "bicubic"),
    ),
    "dinov3": (
        dict(INNER, model_type="dinov3_vit", num_register_tokens=4, use_gated_mlp=True, key_bias=False),
        5,
        (*IMAGENET, False, "bilinear"),
    ),
    "aimv2": (dict(INNER, model_type="aimv2_vision_model", use_head=False), 0, (*CLIP, True, "bicubic")),
    "internvit": (
        dict(INNER, model_type="internvl_vision", image_size=[12, 12], patch_size=[4, 4], use_qk_norm=True)
        | dict(attention_bias=True, norm_type="rms_norm"),
        1,
        (*IMAGENET, False, "bicubic"),
    ),
    "c-radio": (
        dict(SIZES, model_type="radio", num_cls_tokens=3, num_registers=7, max_img_size=24),
        10,
        (0.0, 1.0, False, "bicubic"),
    ),
}


def encoder(family: str, **changes) -> HFVisionEncoder:
    torch.manual_seed(0)
    return noisy(HFVisionEncoder(arch=FAMILIES[family][0], **changes))


def noisy(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def of_blocks(own: HFVisionEncoder, pixels: torch.Tensor) -> list[torch.Tensor]:
    """What the first block gets and what each gives, class and register tokens included."""
    found: list[torch.Tensor] = []

    def behind(_, __, out):
        found.append(out[0] if isinstance(out, tuple) else out)

    def before(_, args, keywords):
        found.append(args[0] if args else keywords["hidden_states"])

    handles = [own.blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [block.register_forward_hook(behind) for block in own.blocks]
    with torch.no_grad():
        own(pixels)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_patch_tokens_of_a_layer(family):
    arch, prefix, _ = FAMILIES[family]
    whole = encoder(family, layer=-1)
    states = of_blocks(whole, PIXELS)
    assert [tuple(state.shape) for state in states] == [(2, prefix + 9, 16)] * 4 and whole.grid == (3, 3)
    for layer in (0, 1, -2, -1, [1, -2]):
        own = encoder(family, layer=layer)
        weights = {key: value for key, value in whole.state_dict().items() if key in own.state_dict()}
        own.load_state_dict(weights)
        chosen = layer if isinstance(layer, list) else [layer]
        wanted = torch.cat([states[index][:, prefix:] for index in chosen], -1)
        with torch.no_grad():
            features = own(PIXELS)
        torch.testing.assert_close(features, wanted, rtol=1e-5, atol=1e-5)
        assert features.shape == (2, own.num_tokens, own.width)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_is_of_its_own_patch_in_raster_order(family):
    own = encoder(family, layer=0)
    with torch.no_grad():
        before = own(PIXELS[:1])
        for token in range(9):
            y, x = 4 * (token // 3), 4 * (token % 3)
            changed = PIXELS[:1].clone()
            changed[..., y : y + 4, x : x + 4] += 1
            moved = (own(changed) - before).abs().amax(-1)[0]
            assert moved[token] > 1e-3 and moved.sum() == moved[token], token


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_preprocessor_file_the_family_decides(family):
    mean, std, crop, interpolation = FAMILIES[family][2]
    own = encoder(family).transform
    assert (own.mean[0], own.std[0], own.center_crop, own.interpolation) == (mean, std, crop, interpolation)
    assert own.size == (12, 12)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_and_its_preprocessor_file_decide(family, tmp_path):
    arch = dict(FAMILIES[family][0])
    torch.manual_seed(0)
    noisy(AutoModel.from_config(AutoConfig.for_model(arch.pop("model_type"), **arch))).save_pretrained(tmp_path)
    fields = dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=2, do_center_crop=True)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    own = HFVisionEncoder(name=str(tmp_path)).eval()
    assert own.transform.mean == (0.1, 0.2, 0.3) and own.transform.std == (0.4, 0.5, 0.6)
    assert own.transform.center_crop and own.transform.interpolation == "bilinear" and own.source == str(tmp_path)
    again = HFVisionEncoder(arch=FAMILIES[family][0]).eval()
    again.load_state_dict(own.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(PIXELS), own(PIXELS), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "processor"),
    [
        ("siglip", SiglipImageProcessorPil(size=dict(height=12, width=12))),
        ("clip", CLIPImageProcessorPil(size=dict(shortest_edge=12), crop_size=dict(height=12, width=12))),
        ("aimv2", CLIPImageProcessorPil(size=dict(shortest_edge=12), crop_size=dict(height=12, width=12))),
        (
            "c-radio",
            CLIPImageProcessorPil(size=dict(height=12, width=12), do_center_crop=False, do_normalize=False),
        ),
    ],
    ids=["siglip", "clip", "aimv2", "c-radio"],
)
def test_pixels_are_those_of_transformers_processor(family, processor, tmp_path):
    arch = dict(FAMILIES[family][0])
    AutoModel.from_config(AutoConfig.for_model(arch.pop("model_type"), **arch)).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    own = HFVisionEncoder(name=str(tmp_path)).transform
    image = Image.fromarray(torch.arange(31 * 22 * 3).view(31, 22, 3).remainder(251).byte().numpy())
    theirs = processor(image, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(own(image), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_tower_gets_gradients_and_a_vlm_learns(family):
    torch.manual_seed(0)
    model = VLM(
        encoder=dict(type="HFVisionEncoder", arch=FAMILIES[family][0]),
        projector=dict(type="MLPProjector"),
        llm=dict(type="HFCausalLM", arch=LLAMA),
        reconstruction=[],
        vocab_size=VOCAB,
    )
    model.train_only(["encoder", "projector"])
    batch = collate(model, [row("biwww", 0), row("bwiww", 1)])
    gradients = gradients_of(model(batch)["text"], model)
    blocks = [name for name in gradients if ".layer." in name or ".layers." in name]
    blocks = [name for name in blocks if name.startswith("encoder.") and name.endswith("weight")]
    assert len(blocks) > 6 and all(gradients[name].abs().max() > 0 for name in blocks)


@pytest.mark.parametrize("whole", ["internvl", "aimv2"])
def test_a_tower_is_read_out_of_a_whole_model(whole, tmp_path):
    """InternViT is published within InternVL's folders, AIMv2's CLIP-like models with their text tower."""
    torch.manual_seed(0)
    vision = dict(FAMILIES["internvit" if whole == "internvl" else whole][0])
    vision.pop("model_type")
    if whole == "internvl":
        text = dict(TEXT, model_type="qwen2", num_key_value_heads=2)
        model = InternVLForConditionalGeneration(InternVLConfig(vision_config=vision, text_config=text))
        tower = model.model.vision_tower
    else:
        model = Aimv2Model(Aimv2Config(vision_config=vision, text_config=TEXT, projection_dim=8))
        tower = model.vision_model
    noisy(model).save_pretrained(tmp_path)
    own = HFVisionEncoder(name=str(tmp_path), layer=-2).eval()
    with torch.no_grad():
        wanted = tower(PIXELS, output_hidden_states=True).hidden_states[-2][:, -9:]
        torch.testing.assert_close(own(PIXELS), wanted, rtol=1e-5, atol=1e-5)


# Towers that give no one grid, and other squares -----------------------------------------------------------------


def test_pyramids_and_oblongs_are_refused_with_what_to_do():
    half = dict(mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(ValueError, match="dinov3_convnext gives maps of several sizes.*type='TimmEncoder'"):
        HFVisionEncoder(arch=dict(model_type="dinov3_convnext"))
    swin = dict(model_type="swin", image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2])
    with pytest.raises(ValueError, match=r"swin: layer \d gives \(.*not the 64 tokens of a grid of 8 x 8.*TimmEncoder"):
        HFVisionEncoder(arch=dict(swin, window_size=4), transform=half)(torch.randn(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"image_size=\[12, 8\]: expected a square"):
        HFVisionEncoder(arch=dict(FAMILIES["internvit"][0], image_size=[12, 8]))


# timm's, pairs, several scales ------------------------------------------------------------------------------------

TIMM = {  # model -> side, tokens in front of the patches
    "vit_tiny_patch16_224": (32, 1),
    "vit_small_patch14_reg4_dinov2": (28, 5),
    "vit_small_patch16_dinov3": (32, 5),
    "vit_base_patch16_radio_v3": (32, 8),
    "convnext_atto": (64, 0),
}


@pytest.mark.parametrize("model", TIMM)
def test_timm_models_give_the_tokens_of_one_grid(model):
    side, prefix = TIMM[model]
    torch.manual_seed(0)
    own = TimmEncoder(model=model, image_size=side).eval()
    rows, columns = own.grid
    with torch.no_grad():
        features = own(torch.randn(1, 3, side, side))
    assert features.shape == (1, rows * columns, own.width) and rows == columns
    assert getattr(own.model, "num_prefix_tokens", 0) == prefix


def test_a_pair_and_scales_of_new_families():
    one, two = ({"type": "HFVisionEncoder", "arch": FAMILIES[name][0]} for name in ("dinov3", "aimv2"))
    two = dict(two, transform=dict(center_crop=False))
    pair = MultiEncoder(encoders=[one, two], join="channel").eval()
    assert (pair.grid, pair.width) == ((3, 3), 32)
    scaled = S2(encoder=one, scales=[1, 2]).eval()
    assert (scaled.grid, scaled.width) == ((3, 3), 32)


def test_naflex_reads_images_in_their_own_shape():
    own = NaFlexEncoder(arch=FAMILIES["siglip2-naflex"][0], max_num_patches=8)
    assert own.num_tokens == 8 and isinstance(_blocks(own.model.encoder), nn.ModuleList)


def test_the_tower_of_a_depth_model_is_its_backbone(tmp_path):
    """Depth Anything: a DINOv2 with other weights, out of the whole model's folder."""
    sizes = dict(SIZES, out_features=["stage2", "stage3"], reshape_hidden_states=False)
    reassembled = dict(reassemble_hidden_size=16, neck_hidden_sizes=[8, 8], reassemble_factors=[2, 1])
    config = DepthAnythingConfig(
        backbone_config=Dinov2Config(**sizes), **reassembled, fusion_hidden_size=8, head_hidden_size=4, patch_size=4
    )
    whole = noisy(DepthAnythingForDepthEstimation(config))
    whole.save_pretrained(tmp_path)
    own = HFVisionEncoder(name=str(tmp_path), layer=-1, arch=dict(SIZES, model_type="dinov2")).eval()
    states = whole.backbone(PIXELS, output_hidden_states=True).hidden_states
    assert torch.allclose(own(PIXELS), states[-1][:, 1:], atol=1e-6)
    assert own.grid == (3, 3) and own.transform.center_crop is False
    assert (own.transform.mean[0], own.transform.std[0], own.transform.interpolation) == (*IMAGENET, "bicubic")


def test_the_maps_of_sam_are_tokens(tmp_path):
    vision = dict(SIZES, output_channels=8, mlp_dim=24, global_attn_indexes=[1], window_size=2)
    sizes = dict(hidden_size=8, image_size=12, patch_size=4)
    decoder = dict(hidden_size=8, mlp_dim=8, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=8)
    prompt = SamPromptEncoderConfig(**sizes, mask_input_channels=4).to_dict()
    whole = noisy(
        SamModel(
            SamConfig(
                vision_config=SamVisionConfig(**vision).to_dict(),
                prompt_encoder_config=prompt,
                mask_decoder_config=SamMaskDecoderConfig(**decoder).to_dict(),
            )
        )
    )
    whole.save_pretrained(tmp_path)
    own = HFVisionEncoder(name=str(tmp_path), layer=2).eval()
    states = whole.vision_encoder(PIXELS, output_hidden_states=True).hidden_states
    assert own(PIXELS).shape == (2, 9, 16) and torch.allclose(own(PIXELS), states[2].flatten(1, 2), atol=1e-6)
    assert (own.transform.mean[0], own.transform.std[0]) == IMAGENET
