"""DualToken's tokenizers: codes and images are those of a straight-line computation on the same weights."""

import ast
import json
import re

import pytest
import torch
import torch.nn.functional as F
from run_helpers import ROOT
from safetensors.torch import load_file, save_file
from test_convert import tool  # noqa: F401  a fixture
from test_released import GOLDEN
from test_vqgan_import import Listing
from vqgan_reference import Layout, Maker, decoder, run_block, run_decoder

from asvr.interchange import dualtoken
from asvr.interchange.detect import detect
from asvr.interchange.rules import sort_keys
from asvr.registry import VISUAL_TOKENIZERS

RQVAE = "model.vision_tokenizer.vision_tower.rqvaesiglip."
WIDTH, SIDE, NARROW = 32, 27, 8  # of the tower, of its grid, of generation D's codes
DECODER = Layout("dualtoken", mult=(1, 1), attention=(1,))
NAMES = dict(
    a=dict(semantic=("quantizer_semantic", "prequant_semantic"), appearance=("quantizer", "prequant_visual")),
    b=dict(semantic=("quantizer_semantic", None), appearance=("quantizer", "prequant_visual")),
    d=dict(semantic=("quantizer_sem", "prequant_sem"), appearance=("quantizer_pix", "prequant_pix")),
)
AFTER = dict(a="postquant_visual", b="postquant_visual", d="postquant_pix")


def attention_projection(make: Maker, name: str, inside: int, out: int) -> None:
    wide = max(inside, out)
    for norm, width in (("norm1", inside), ("norm3", inside), ("norm2", out), ("mlp.norm", out)):
        make.norm(f"{name}.{norm}", width)
    make.add(f"{name}.attn.qkv.weight", 3 * wide, inside, scale=inside**-0.5)
    make.add(f"{name}.attn.q_bias", wide, scale=0.1)
    make.add(f"{name}.attn.v_bias", wide, scale=0.1)
    make.tensors[f"{name}.attn.zero_k_bias"] = torch.zeros(wide)
    for part, (a, b) in {
        "attn.proj": (out, out), "proj": (out, inside), "mlp.w0": (2 * out, out), "mlp.w1": (2 * out, out),
        "mlp.w2": (out, 2 * out),
    }.items():  # fmt: skip
        make.add(f"{name}.{part}.weight", a, b, scale=b**-0.5)
        make.add(f"{name}.{part}.bias", a, scale=0.1)


def run_attention_projection(w: dict, name: str, x, *, causal: bool):
    """x (N, width)."""

    def linear(part, h):
        return h @ w[f"{name}.{part}.weight"].T + w[f"{name}.{part}.bias"]

    def norm(part, h, eps=1e-5):
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, correction=0) + eps).sqrt()
        return h * w[f"{name}.{part}.weight"] + w[f"{name}.{part}.bias"]

    inside, out = w[f"{name}.proj.weight"].shape[::-1]
    wide, head = max(inside, out), min(inside, out)
    q, k, v = (norm("norm1", x) @ w[f"{name}.attn.qkv.weight"].T).split(wide, dim=-1)
    q, v = q + w[f"{name}.attn.q_bias"], v + w[f"{name}.attn.v_bias"]
    mask = torch.full((len(x), len(x)), float("-inf")).triu(1) if causal else 0
    heads = []
    for i in range(0, wide, head):
        scores = q[:, i : i + head] @ k[:, i : i + head].T / head**0.5 + mask
        heads.append(scores.softmax(-1) @ v[:, i : i + head])
    attended = torch.stack(heads).mean(0) if inside > out else torch.cat(heads, dim=-1)
    x = linear("proj", norm("norm3", x)) + linear("attn.proj", attended)
    h = norm("mlp.norm", norm("norm2", x), 1e-6)
    return x + linear("mlp.w2", F.gelu(linear("mlp.w0", h), approximate="tanh") * linear("mlp.w1", h))


@pytest.fixture(scope="module")
def tower() -> dict:
    """The golden tokenizer by itself, in float32."""
    weights = load_file(GOLDEN / "model.safetensors")
    return {key.removeprefix(RQVAE): value.float() for key, value in weights.items() if key.startswith(RQVAE)}


def build(tower: dict, generation: str, shared: bool) -> dict:
    """A tokenizer of a generation, around the golden tower."""
    make = Maker(seed=3)
    if generation == "d":
        for name in ("prequant_sem", "prequant_pix", "prequant_shortcut"):
            attention_projection(make, name, WIDTH, NARROW)
        for name in ("postquant_sem", "postquant_pix"):
            attention_projection(make, name, NARROW, WIDTH)
    else:
        for name in ["prequant_visual", "postquant_visual"] + ["prequant_semantic"] * (generation == "a"):
            make.block(name, WIDTH, WIDTH, side=1)
    make.block("post_quant_conv", WIDTH, WIDTH, side=1)
    decoder(make, DECODER, latent=WIDTH)
    for quantizer, _ in NAMES[generation].values():
        for level in range(8):
            name = f"{quantizer}.codebooks.{level}"
            make.add(f"{name}.weight", 65, NARROW if generation == "d" else WIDTH, scale=0.7)
            if shared:
                make.tensors[f"{name}.weight"] = make.tensors[f"{quantizer}.codebooks.0.weight"].clone()
            if generation == "d":
                make.add(f"{name}.cluster_size_ema", 64)
                make.add(f"{name}.embed_ema", 64, NARROW)
    return {key: value for key, value in tower.items() if key.startswith("siglip_model.")} | make.tensors


def straight_line(w: dict, generation: str, branch: str, features) -> tuple:
    """Codes (N, 8), and for the appearance branch the image, not clamped, of features (N, width), one or two."""
    quantizer, before = NAMES[generation][branch]
    first, *rest = features.split(WIDTH, dim=-1)
    if before is None:
        x = first
    elif generation == "d":
        x = run_attention_projection(w, before, first, causal=False)
        if rest:
            x = x + 0.6 * run_attention_projection(w, "prequant_shortcut", rest[0], causal=False)
    else:
        x = run_block(w, before, first.T.reshape(1, WIDTH, SIDE, SIDE)).flatten(2)[0].T
    codes, chosen = [], torch.zeros_like(x)
    for level in range(8):
        book = w[f"{quantizer}.codebooks.{level}.weight"][:-1]
        codes.append(((x - chosen)[:, None] - book[None]).square().sum(-1).argmin(1))
        chosen = chosen + book[codes[-1]]
    if branch == "semantic":
        return torch.stack(codes, 1), None
    if generation == "d":
        z = run_attention_projection(w, "postquant_pix", chosen, causal=True).T.reshape(1, WIDTH, SIDE, SIDE)
    else:
        z = run_block(w, "postquant_visual", chosen.T.reshape(1, -1, SIDE, SIDE))
    z = run_block(w, "post_quant_conv", F.interpolate(z, (24, 24), mode="bilinear"))
    return torch.stack(codes, 1), run_decoder(w, DECODER, z)


@pytest.mark.parametrize("generation", "abd")
@pytest.mark.parametrize("branch", ["semantic", "appearance"])
@pytest.mark.parametrize("shared", [False, True])
def test_codes_and_pictures_are_those_of_a_straight_line_computation(
    generation,
    branch,
    shared,
    tool,  # noqa: F811
    tower,
    tmp_path,
):
    weights = build(tower, generation, shared)
    torch.save(dict(epoch=1, state_dict=weights), tmp_path / "t.pt")
    (tmp_path / "config.json").write_text(json.dumps(dict(rqvaesiglip=dict(decoder_latent_shape=[24, 24]))))
    options = ("--heads", 4, "--tower", "siglip-x-384", "--branch", branch)
    error, text = tool("import", tmp_path / "t.pt", tmp_path / "out", *options)
    assert error is None and f"'shared': {shared}" in text
    config = ast.literal_eval(text.split("Its config: ")[1].strip())  # printed as a config is written
    tokenizer = VISUAL_TOKENIZERS.build(config)  # as a target's config names it
    layers = dict(semantic=26, appearance=[6, 4] if generation == "d" else 6)
    assert tokenizer.encoder.layer == layers[branch] and tokenizer.transform.size == (384, 384)

    pixels = torch.rand(1, 3, 384, 384, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features = tokenizer.features(pixels)
    codes, picture = straight_line(weights, generation, branch, features[0])
    agree = (tokenizer.encode(pixels)[0] == codes).all(-1).float().mean()
    assert agree > 0.99  # distances are summed up in another order: a near tie may fall apart
    if branch == "appearance":
        torch.testing.assert_close(tokenizer.decode(codes[None]), picture.clamp(-1, 1), rtol=0, atol=1e-5)
    else:
        with pytest.raises(ValueError, match="has no decoder"):
            tokenizer.decode(codes[None])
    error, text = tool("show", tmp_path / "t.pt")
    assert (
        error is None and f"(dualtoken-{generation})" in text and "under 'state_dict'" in text and "unknown" not in text
    )


def test_two_layers_of_a_tower_stand_side_by_side(tower, tool, tmp_path):  # noqa: F811
    save_file(build(tower, "d", True), tmp_path / "t.safetensors")
    state = dict(decoder_latent_shape=[24, 24], layer_shortcut=2, weight_shortcut=0.5)
    (tmp_path / "config.json").write_text(json.dumps(dict(rqvaesiglip=state)))
    options = ("--heads", 4, "--branch", "appearance")
    error, text = tool("import", tmp_path / "t.safetensors", tmp_path / "out", *options)
    config = ast.literal_eval(text.split("Its config: ")[1].strip())
    assert config["projection"] == dict(type="attention", width=NARROW, shortcut=0.5)
    tokenizer = VISUAL_TOKENIZERS.build(config)
    assert tokenizer.transform.size == (384, 384)  # of the published tower with 27 x 27 patches
    pixels = torch.rand(1, 3, 384, 384) * 2 - 1
    with torch.no_grad():
        states = tokenizer.encoder.model(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert torch.equal(tokenizer.encoder(pixels), torch.cat([states[6], states[2]], dim=-1))


def test_what_no_tensor_tells_must_be_stated(tower, tool, tmp_path):  # noqa: F811
    weights = build(tower, "d", True)
    once = {key: value for key, value in weights.items() if not re.search(r"codebooks\.[1-7]\.", key)}
    save_file(once, tmp_path / "t.safetensors")
    error, _ = tool("import", tmp_path / "t.safetensors", tmp_path / "out", "--heads", 4)
    assert "quantizer_sem.codebooks.0.weight stands there once" in error and "--depth" in error
    error, text = tool("import", tmp_path / "t.safetensors", tmp_path / "out", "--heads", 4, "--depth", 8)
    assert error is None and "'depth': 8" in text
    (tmp_path / "config.json").write_text(json.dumps(dict(rqvaesiglip=dict(vq_sem=dict(code_shape=[27, 27, 8])))))
    error, text = tool("import", tmp_path / "t.safetensors", tmp_path / "out2", "--heads", 4)
    assert error is None and "'depth': 8" in text
    error, _ = tool("import", tmp_path / "t.safetensors", tmp_path / "out3", "--heads", 4, "--branch", "sound")
    assert "branch 'sound': expected one of semantic, appearance" in error
    options = ("--heads", 4, "--branch", "appearance", "--depth", 8)
    deep = {f"decoder.up.{i}.block.0.conv1.weight": torch.zeros(32) for i in range(2, 9)}
    save_file(weights | deep, tmp_path / "t.safetensors")
    error, _ = tool("import", tmp_path / "t.safetensors", tmp_path / "out3", *options)
    assert "cannot give an image of 384 pixels" in error and not (tmp_path / "out3").exists()


@pytest.mark.parametrize(
    ("generation", "branch", "gone", "message"),
    [
        ("d", "appearance", "prequant_shortcut.proj.weight", "missing: projection.shortcut.proj.weight"),
        ("d", "semantic", "prequant_sem.attn.qkv.weight", "missing: prequant_sem.attn.qkv.weight"),
        ("d", "appearance", "prequant_pix", "missing: prequant_pix"),
        ("a", "semantic", "prequant_semantic.conv1.weight", "missing: prequant_semantic.conv1.weight"),
        ("b", "appearance", "decoder.conv_in.weight", "missing: decoder.decoder.conv_in.weight"),
        ("b", "appearance", "decoder.norm_out.weight", "missing: decoder.norm_out.weight"),
        ("b", "appearance", "decoder", "missing: decoder.up"),
        ("b", "semantic", "siglip_model.vision_model.encoder.layers.25.mlp.fc1.weight", "missing: own_encoder"),
    ],
)
def test_a_part_is_whole_or_an_error(generation, branch, gone, message, tower, tool, tmp_path):  # noqa: F811
    weights = build(tower, generation, True)
    kept = {key: value for key, value in weights.items() if key != gone and not key.startswith(f"{gone}.")}
    assert len(kept) < len(weights)
    torch.save(kept, tmp_path / "t.pt")
    (tmp_path / "config.json").write_text(json.dumps(dict(rqvaesiglip=dict(decoder_latent_shape=[24, 24]))))
    error, _ = tool("import", tmp_path / "t.pt", tmp_path / "out", "--heads", 4, "--branch", branch)
    assert message in error and "\n" not in error and not (tmp_path / "out").exists()


def test_settings_that_make_no_sense_are_named(tower, tool, tmp_path):  # noqa: F811
    torch.save(build(tower, "d", True), tmp_path / "t.pt")
    for stated in (dict(layer_shortcut="4"), dict(vq_pix=dict(code_shape=[])), dict(decoder_latent_shape=24)):
        (tmp_path / "config.json").write_text(json.dumps(dict(rqvaesiglip=stated)))
        error, _ = tool("import", tmp_path / "t.pt", tmp_path / "out", "--heads", 4, "--branch", "appearance")
        assert "config.json has " in error and "in rqvaesiglip" in error
    (tmp_path / "config.json").write_text("{}")
    error, _ = tool("import", tmp_path / "t.pt", tmp_path / "out", "--heads", 4, "--depth", 0)
    assert "8 codebooks under quantizer_sem., but the depth stated is 0" in error


def test_a_tower_of_a_published_width_has_all_its_blocks():
    found = published("asvr")
    found.shapes = {key: shape for key, shape in found.shapes.items() if ".layers.26." not in key}
    with pytest.raises(ValueError, match="26 blocks .* a SigLIP tower of width 1152 has 27"):
        dualtoken.plan(found, "semantic", generation="ab", prefix=detect(found).prefix(found))


@pytest.mark.parametrize(("name", "generation", "branch"), [
    ("asvr", "ab", "semantic"), ("asvr", "ab", "appearance"), ("dualtoken_d", "d", "semantic"),
    ("dualtoken_d", "d", "appearance"),
])  # fmt: skip
def test_every_key_of_the_published_sizes_is_used(name, generation, branch):
    """Keys and shapes as the published code instantiates them, on the meta device."""
    found = published(name)
    kind = detect(found)
    assert kind.name == dict(ab="dualtoken-b", d="dualtoken-d")[generation]
    with torch.device("meta"):
        options = dict(generation=generation, prefix=kind.prefix(found), name="siglip-so400m-patch14-384")
        config, tokenizer, rules = dualtoken.plan(found, branch, **options)
    used, _, unknown = sort_keys(found.keys(), rules)
    expected = {key: t.shape for key, t in tokenizer.state_dict().items() if not key.endswith(".share")}
    shapes = {ours: rule.how(torch.empty(found.shapes[key], device="meta")).shape for ours, (key, rule) in used.items()}
    assert not unknown and shapes == expected and tokenizer.depth == 8
    if branch == "appearance":
        assert config["decoder"]["latent_size"] == [24, 24] and config["decoder"]["channel_multiplier"] == [
            1,
            1,
            4,
            4,
            8,
        ]


def published(name: str) -> Listing:
    """The listing of a published model; a line of ``layers.{i}`` stands for 27 layers. Both towers have SO400M's keys;
    generation D's file leaves them out."""
    found = Listing(ROOT / "tests" / "data" / "checkpoint_keys" / f"{name}.txt")
    tower = Listing(ROOT / "tests" / "data" / "checkpoint_keys" / "asvr.txt")
    shapes = found.shapes | {key: shape for key, shape in tower.shapes.items() if ".siglip_model." in key}
    found.shapes = {
        key.replace("{i}", str(i)): shape for key, shape in shapes.items() for i in range(27 if "{i}" in key else 1)
    }
    assert len(found.shapes) == dict(asvr=1222, dualtoken_d=1250)[name]
    return found
