"""VQGANs of other software: their codes and images are those of a straight-line computation on the same weights."""

import ast
import re
from dataclasses import replace

import pytest
import torch
from run_helpers import ROOT
from safetensors.torch import save_file
from test_convert import tool  # noqa: F401  a fixture
from transformers import JanusVQVAE
from vqgan_reference import Layout, checkpoint, straight_line

from asvr.base.checkpoint_files import Checkpoint
from asvr.interchange import vqgan
from asvr.interchange.detect import detect
from asvr.interchange.rules import sort_keys
from asvr.models.tokenizers.pixel import PixelTokenizer
from asvr.registry import VISUAL_TOKENIZERS
from asvr.tokenizer_training.training import train_pixel_tokenizer

KEYS = ROOT / "tests" / "data" / "checkpoint_keys"
LAYOUTS = {
    "taming": Layout("taming"),
    "rqvae": Layout("rqvae", depth=4),
    "rqvae-attention-elsewhere": Layout("rqvae", attention=(1,), depth=3),
    "llamagen": Layout("llamagen"),
    "llamagen-deeper": Layout("llamagen", mult=(1, 2, 2, 2), blocks=2, attention=(3,)),
    "janus-own": Layout("llamagen", prefix="gen_vision_model."),
    "janus": Layout("janus"),
    "janus-whole": Layout("janus", prefix="model.vqmodel."),
}
WRAPPERS = dict(taming="state_dict", rqvae="state_dict", llamagen="model")


def save(layout: Layout, folder, tensors=None):
    tensors = checkpoint(layout) if tensors is None else tensors
    tensors |= {"language_model.lm_head.weight": torch.zeros(3)} if layout.prefix else {}
    if layout.kind in WRAPPERS and not layout.prefix:
        torch.save({WRAPPERS[layout.kind]: tensors, "epoch": 3}, folder / "in.pt")
        return folder / "in.pt", tensors
    save_file(tensors, folder / "in.safetensors")
    return folder / "in.safetensors", tensors


@pytest.mark.parametrize("name", LAYOUTS)
def test_codes_and_pictures_are_those_of_a_straight_line_computation(name, tool, tmp_path):  # noqa: F811
    layout = LAYOUTS[name]
    file, tensors = save(layout, tmp_path)
    error, text = tool("import", file, tmp_path / "out", "--image-size", 32)
    assert error is None
    config = ast.literal_eval(text.split("Its config: ")[1].strip())  # printed as a target's config names it
    tokenizer = VISUAL_TOKENIZERS.build(config)
    assert tokenizer.depth == layout.depth and tokenizer.codebook_sizes[0] == layout.codes[0]
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    codes, pictures = straight_line(tensors, layout, pixels)
    assert torch.equal(tokenizer.encode(pixels), codes) and len(codes.unique()) > 5
    torch.testing.assert_close(tokenizer.decode(codes), pictures.clamp(-1, 1), rtol=0, atol=1e-5)
    error, text = tool("show", file)
    assert error is None and layout.kind in text and "unknown" not in text


def test_transformers_reads_the_folder_of_a_vqgan_with_unit_vectors(tool, tmp_path):  # noqa: F811
    layout = LAYOUTS["llamagen"]
    file, tensors = save(layout, tmp_path)
    tool("import", file, tmp_path / "out", "--image-size", 32)
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    codes, pictures = straight_line(tensors, layout, pixels)
    with torch.no_grad():
        theirs = JanusVQVAE.from_pretrained(tmp_path / "out").decode(codes.squeeze(-1))
    torch.testing.assert_close(theirs, pictures, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["rqvae_in256", "rqvae_ffhq256", "taming_f16", "llamagen_vq16", "llamagen_vq8"])
def test_every_key_of_the_published_sizes_is_used(name):
    """Keys and shapes as the published code instantiates them, on the meta device."""
    found = Listing(KEYS / f"{name}.txt")
    kind = detect(found)
    with torch.device("meta"):
        _, tokenizer, rules = vqgan.plan(found, kind.name)
    used, ignored, unknown = sort_keys(found.keys(), rules)
    expected = {key: t.shape for key, t in tokenizer.state_dict().items() if key != "trained"}
    shapes = {ours: rule.how(torch.empty(found.shapes[key], device="meta")).shape for ours, (key, rule) in used.items()}
    assert kind.name == name.split("_")[0] and not unknown and shapes == expected
    assert all(re.search("codebook_used|ema|codebooks", key) for key in ignored)
    assert tokenizer.depth == (4 if kind.name == "rqvae" else 1)


class Listing(Checkpoint):
    """A checkpoint of which only keys and shapes are known; tensors are zeros."""

    def __init__(self, file):
        lines = [re.fullmatch(r"(\S+) \((.*)\)", line) for line in file.read_text().splitlines()]
        shapes = {m[1]: tuple(int(n) for n in m[2].split(",") if n.strip()) for m in lines}
        super().__init__(file, readers={}, shapes=shapes, wrapper=None, dtypes=set(), left_out=[])

    def __getitem__(self, key):
        return torch.zeros((), device="cpu").expand(self.shapes[key])


def test_the_depth_of_a_codebook_saved_once_must_be_stated(tool, tmp_path):  # noqa: F811
    layout = LAYOUTS["rqvae"]
    tensors = {k: v for k, v in checkpoint(layout).items() if not re.search(r"codebooks\.[123]", k)}
    file, _ = save(layout, tmp_path, tensors)
    error, _ = tool("import", file, tmp_path / "out")
    assert "stands there once" in error and "--depth" in error and not (tmp_path / "out").exists()
    error, text = tool("import", file, tmp_path / "out", "--depth", 4, "--image-size", 32)
    assert error is None
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    tokenizer = PixelTokenizer(image_size=32, name=str(tmp_path / "out"))
    assert torch.equal(tokenizer.encode(pixels), straight_line(checkpoint(layout), layout, pixels)[0])
    (tmp_path / "config.yaml").write_text("arch:\n  hparams:\n    code_shape: [8, 8, 4]\n")
    error, _ = tool("import", file, tmp_path / "out2", "--image-size", 32)
    assert error is None and PixelTokenizer(image_size=32, name=str(tmp_path / "out2")).depth == 4
    (tmp_path / "config.yaml").write_text("arch: [")
    error, _ = tool("import", file, tmp_path / "out3")
    assert "config.yaml: expected arch.hparams.code_shape" in error


def spoil(tensors: dict, change: str) -> None:
    if change == "missing":
        del tensors["decoder.mid.attn_1.q.weight"]
    elif change == "unexpected":
        tensors["decoder.surprise.weight"] = torch.zeros(2)
    elif change == "misshaped":
        tensors["post_quant_conv.weight"] = torch.zeros(32, 5, 1, 1)
    elif change == "nan":
        tensors["quant_conv.bias"][1] = float("nan")
    elif change == "int8":
        tensors["quant_conv.bias"] = tensors["quant_conv.bias"].to(torch.int8)
    elif change == "gumbel":
        tensors["quantize.embed.weight"] = tensors.pop("quantize.embedding.weight")
        tensors["quantize.proj.weight"] = torch.zeros(2)
    elif change == "remapped":
        tensors["quantize.used"] = torch.zeros(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "missing: model.decoder.mid.attn_1.q.weight (1 in all)"),
        ("unexpected", "unexpected: decoder.surprise.weight (1 in all)"),
        ("misshaped", "misshaped: post_quant_conv.weight (32, 5, 1, 1)"),
        ("nan", "unusable: quant_conv.bias (NaN or infinity)"),
        ("int8", "unusable: quant_conv.bias (torch.int8)"),
        ("gumbel", "Gumbel quantisation (taming-gumbel) is not imported"),
        ("remapped", "renumbered (taming-remapped) is not imported"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(change, message, tool, tmp_path):  # noqa: F811
    tensors = checkpoint(LAYOUTS["taming"])
    spoil(tensors, change)
    file, _ = save(LAYOUTS["taming"], tmp_path, tensors)
    error, _ = tool("import", file, tmp_path / "out", "--image-size", 32)
    assert message in error and not (tmp_path / "out").exists()


def test_options_of_another_kind_and_differing_codebooks_are_refused(tool, tmp_path):  # noqa: F811
    file, _ = save(LAYOUTS["taming"], tmp_path)
    error, _ = tool("import", file, tmp_path / "out", "--heads", 4)
    assert "--heads: no option for a taming-transformers VQGAN, which takes --image-size" in error
    error, _ = tool("import", file, tmp_path / "out", "--image-size", 30)
    assert "image_size=30: expected a multiple of 4" in error and not (tmp_path / "out").exists()
    error, _ = tool("import", file, tmp_path / "out", "--image-size", 0)
    assert "image_size=0: expected a multiple of 4, such as 4" in error and not (tmp_path / "out").exists()
    layout = LAYOUTS["rqvae"]
    tensors = checkpoint(layout)
    tensors["quantizer.codebooks.2.weight"] += 1
    file, _ = save(layout, tmp_path, tensors)
    error, _ = tool("import", file, tmp_path / "out")
    assert "its 4 codebooks differ" in error


def test_residual_codes_are_not_trained_here(tmp_path):
    arch = dict(base_channels=32, channel_multiplier=[1], num_res_blocks=0, depth=2, unit_vectors=False)
    with pytest.raises(ValueError, match=r"tokenizer\.arch\.depth=2"):
        train_pixel_tokenizer(PixelTokenizer(image_size=4, arch=arch), None, work_dir=tmp_path, steps=1)
    with pytest.raises(ValueError, match="unit_vectors=False"):
        PixelTokenizer(image_size=4, arch=dict(arch, unit_vectors=True))
    with pytest.raises(ValueError, match=r"attention_levels: \[3\]"):
        PixelTokenizer(image_size=4, arch=dict(arch, attention_levels=[3]))


def test_a_model_carries_an_imported_tokenizer(tool, tmp_path):  # noqa: F811
    """What stands only in a folder's config is in the portable config too."""
    layout = replace(LAYOUTS["rqvae-attention-elsewhere"])
    file, _ = save(layout, tmp_path)
    tool("import", file, tmp_path / "out", "--image-size", 32)
    tokenizer = PixelTokenizer(image_size=32, name=str(tmp_path / "out"))
    config = tokenizer.portable(dict(type="PixelTokenizer", image_size=32, name=str(tmp_path / "out")))
    again = VISUAL_TOKENIZERS.build(config)
    again.load_state_dict(tokenizer.state_dict())
    assert "name" not in config and again.fingerprint() == tokenizer.fingerprint()
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(again.encode(pixels), tokenizer.encode(pixels))
