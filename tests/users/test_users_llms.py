"""LLMs and towers of every family: packed rows, taps, vocabularies, positions and FLOPs are as they are said to be."""

import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from run_helpers import ROOT, SIGLIP
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from asvr.base import compat
from asvr.base.arch import check_arch
from asvr.data.batch import Segments
from asvr.data.text_tokenizer import HFTokenizer
from asvr.evaluation.accuracy import _with_room
from asvr.evaluation.generation import PromptTooLong, generate
from asvr.flops.count import Sample, forward_parts
from asvr.flops.step import StepFlops
from asvr.models.attention import PREFIX, set_kernel
from asvr.models.attention_checks import check_isolation
from asvr.models.encoders import HFVisionEncoder
from asvr.models.encoders.huggingface import _blocks
from asvr.models.llms import HFCausalLM
from asvr.models.tokenizers import SemanticTokenizer
from asvr.models.vlm import VLM
from asvr.profiling.dry_run import _flops_or_why
from asvr.recipe.components import _fit
from asvr.recipe.preflight import build_meta, check_sizes
from asvr.recipe.recipe import Recipe
from asvr.registry import ENCODERS, VISUAL_TOKENIZERS

SIZES = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64
)
GROUPED = dict(SIZES, num_key_value_heads=2)
EXPERTS = dict(GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
GPT2 = dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
OPT = dict(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, dropout=0.0)
LLMS = dict(
    llama=GROUPED,
    mistral=dict(GROUPED, head_dim=8, sliding_window=3),
    qwen2=GROUPED,
    qwen3=GROUPED,
    qwen3_moe=dict(EXPERTS, head_dim=8),
    mixtral=dict(GROUPED, num_local_experts=4, num_experts_per_tok=2),
    olmoe=dict(GROUPED, num_experts=4, num_experts_per_tok=2),
    phi3=dict(GROUPED, pad_token_id=0, eos_token_id=1),
    gemma=dict(GROUPED, head_dim=8),
    olmo2=dict(GROUPED, eos_token_id=1),
    smollm3=dict(GROUPED, pad_token_id=0, bos_token_id=1, eos_token_id=1),
    gpt_neox=SIZES,
    gpt2=dict(GPT2, bos_token_id=1, eos_token_id=1),
    opt=dict(OPT, word_embed_proj_dim=32, max_position_embeddings=64),
)
# Their blocks do not hand on which tokens belong together, or have a convolution over the row.
NOT_PACKED = dict(
    stablelm=GROUPED,
    nemotron=GROUPED,
    lfm2=dict(GROUPED, layer_types=["conv", "full_attention"]),
)


def llm(kind: str, *, noise: float = 0.1, **changes) -> HFCausalLM:
    torch.manual_seed(0)
    arch = dict((LLMS | NOT_PACKED)[kind], model_type=kind, **changes)
    model = HFCausalLM(arch=arch, vocab_size=40).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn_like(parameter)
    return model


def packed_and_alone(model: HFCausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(40, (5, 4), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        embeds = model.embed(ids)
        packed = model.hidden(embeds.flatten(0, 1)[None], {-1}, segments=Segments.of([4] * 5))[-1]
        return packed.view_as(embeds), torch.cat([model.hidden(row[None], {-1})[-1] for row in embeds])


# Packed rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LLMS)
def test_what_is_packed_is_what_it_is_alone(kind):
    model = llm(kind)
    set_kernel(model, "sdpa")
    for dtype in (None, torch.bfloat16):
        check_isolation(model, dtype)
    torch.testing.assert_close(*packed_and_alone(model), rtol=1e-4, atol=1e-5)
    assert model.model.config._attn_implementation == PREFIX + "sdpa"


@pytest.mark.parametrize("noise", [0.0, 0.1])  # as it is initialised, a branch of a block gives next to nothing
@pytest.mark.parametrize("kind", NOT_PACKED)
def test_what_differs_packed_is_refused(kind, noise):
    model = llm(kind, noise=noise)
    set_kernel(model, "sdpa")
    packed, alone = packed_and_alone(model)
    assert (packed - alone).abs().max() > 1e-4
    for dtype in (None, torch.bfloat16):
        with pytest.raises(ValueError, match="data.pack: HFCausalLM lets a sample of a row see the one before"):
            check_isolation(model, dtype)


class Leaking(torch.nn.Module):
    """An LLM with kernels of its own, whose samples move by a part of the one before."""

    own_kernels = True

    def __init__(self, model: HFCausalLM, shift: float):
        super().__init__()
        self.inner, self.shift, self.hidden_size = model, shift, model.hidden_size

    def hidden(self, embeds, taps, mask=None, segments=None):
        out = self.inner.hidden(embeds, taps, mask, segments)[-1]
        return {-1: out if segments is None else out + self.shift * out.roll(4, 1)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shift", "accepted"), [(0.0, True), (1e-7, True), (3e-2, False)])
def test_rounding_is_told_from_a_leak(shift, accepted, dtype):
    model = llm("llama").to(dtype)
    set_kernel(model, "sdpa")
    leaking = Leaking(model, shift).train()
    if accepted:
        check_isolation(leaking, None)
    else:
        with pytest.raises(ValueError, match="lets a sample of a row see the one before"):
            check_isolation(leaking, None)
    assert leaking.training


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "qwen3_moe"])
def test_half_precision_alone_is_no_leak(kind):
    model = llm(kind).to(torch.bfloat16)
    set_kernel(model, "sdpa")
    check_isolation(model, torch.bfloat16)


def test_the_field_of_a_dropout_that_packing_excludes_is_the_models_own():
    for kind, field in (("gpt2", "attn_pdrop"), ("llama", "attention_dropout"), ("opt", "attention_dropout")):
        model = llm(kind, **({} if kind == "gpt2" else {field: 0.1}))
        if kind == "gpt2":
            model = HFCausalLM(arch=dict(LLMS["gpt2"], model_type="gpt2", attn_pdrop=0.1), vocab_size=40)
        set_kernel(model, "sdpa")
        with pytest.raises(ValueError, match=rf"llm.arch.{field}=0.1: does not work with packed rows, set it to 0"):
            model.train().hidden(torch.randn(1, 8, 32), {-1}, segments=Segments.of([4, 4]))


# What the text loss sees ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*LLMS, *NOT_PACKED])
def test_the_lm_head_on_the_hidden_states_gives_the_models_own_logits(kind):
    model = llm(kind)
    with torch.no_grad():
        embeds = model.embed(torch.randint(40, (2, 5)))
        logits = model.model(inputs_embeds=embeds).logits
        torch.testing.assert_close(model.lm_head(model.hidden(embeds)[-1]), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (
            dict(SIZES, model_type="bert", is_decoder=True),
            "BertLMHeadModel has its LM head inside another part",
        ),
        (dict(SIZES, model_type="roberta"), "is an encoder \\(model_type 'roberta'\\)"),
        (dict(GROUPED, model_type="falcon_h1", lm_head_multiplier=0.5), "LLM falcon_h1: `lm_head_multiplier`"),
        (dict(GROUPED, model_type="xlstm", output_logit_soft_cap=30.0), "LLM xlstm: `output_logit_soft_cap`"),
    ],
)
def test_an_llm_that_does_more_than_its_lm_head_is_refused(arch, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        HFCausalLM(arch=arch)


# Taps and layers -----------------------------------------------------------------------------------------------


CHECKPOINTED = [(kind, mode) for kind in ("llama", "gpt2") for mode in ("full", "selective")]


@pytest.mark.parametrize(("kind", "checkpointing"), [*((kind, "none") for kind in LLMS | NOT_PACKED), *CHECKPOINTED])
def test_a_tap_is_the_output_of_that_block_and_the_last_is_in_front_of_the_norm(kind, checkpointing):
    torch.manual_seed(0)
    arch = dict((LLMS | NOT_PACKED)[kind], model_type=kind)
    model = HFCausalLM(arch=arch, vocab_size=40, activation_checkpointing=checkpointing).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    outputs = []
    handles = [
        block.register_forward_hook(lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        for block in model.blocks
    ]
    hidden = model.hidden(model.embed(torch.randint(40, (2, 5))), {-1, 1, 2})
    for handle in handles:
        handle.remove()
    for tap in (1, 2):
        torch.testing.assert_close(hidden[tap], outputs[tap - 1])
    torch.testing.assert_close(model.final_norm(hidden[2]), hidden[-1])
    assert not torch.allclose(hidden[2], hidden[-1])
    assert not model.final_norm._forward_pre_hooks
    hidden[2].square().sum().backward()
    assert next(model.blocks[0].parameters()).grad.abs().max() > 0


TARGET = dict(
    name="semantic",
    tokenizer=dict(type="SemanticTokenizer", depth=2, codebook_size=4),
    head=dict(type="LinearHead"),
    shift=1,
)
CONFIG = dict(
    type="VLM",
    encoder=dict(type="HFVisionEncoder", arch=SIGLIP),
    projector=dict(type="MLPProjector"),
    llm=dict(type="HFCausalLM", arch=dict(GROUPED, model_type="llama")),
    reconstruction=[TARGET],
)


def vlm(**changes) -> VLM:
    torch.manual_seed(0)
    return VLM(**{key: value for key, value in dict(CONFIG, vocab_size=40, **changes).items() if key != "type"})


def test_the_last_blocks_tap_is_told_since_it_was_another_once(caplog):
    with caplog.at_level(logging.INFO, logger="asvr"):
        vlm(reconstruction=[dict(TARGET, tap=2)])
    assert "model.reconstruction[0].tap=2 is the output of the last block, before the final norm" in caplog.text


TOWER = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=28)
TOWER |= dict(patch_size=14)
TOWERS = dict(
    clip_vision_model=TOWER,
    siglip_vision_model=TOWER,
    siglip2_vision_model=dict({k: v for k, v in TOWER.items() if k != "image_size"}, num_patches=4),
    dinov2=TOWER,
    dinov2_with_registers=TOWER,
    dinov3_vit=TOWER,
    vit=TOWER,
    aimv2_vision_model=TOWER,
    chinese_clip_vision_model=TOWER,
)
TRANSFORM = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def tower(kind: str, **kwargs) -> dict:
    return dict(type="HFVisionEncoder", arch=dict(TOWERS[kind], model_type=kind), transform=TRANSFORM, **kwargs)


def states_of_blocks(encoder: HFVisionEncoder) -> list[torch.Tensor]:
    """Gets what the first block gets, and what each gives, when the encoder runs."""
    states: list[torch.Tensor] = []

    def before(_, inputs, keywords):
        states.append(inputs[0] if inputs else keywords["hidden_states"])

    def behind(_, __, out):
        states.append(out[0] if isinstance(out, tuple) else out)

    parent = next(m for m in encoder.model.modules() if isinstance(_blocks(m), nn.ModuleList))
    _blocks(parent)[0].register_forward_pre_hook(before, with_kwargs=True)
    for block in _blocks(parent):
        block.register_forward_hook(behind)
    return states


@pytest.mark.parametrize("kind", TOWERS)
def test_a_layer_of_a_tower_is_the_output_of_that_block_before_any_norm(kind):
    for layer, index in ((0, 0), (1, 1), (-2, 2), (3, 3), (-1, 3)):
        torch.manual_seed(0)
        encoder = HFVisionEncoder(**{k: v for k, v in tower(kind, layer=layer).items() if k != "type"}).eval()
        states = states_of_blocks(encoder)
        with torch.no_grad():
            features = encoder(torch.randn(2, 3, *encoder.transform.size))
        torch.testing.assert_close(features, states[index][:, -encoder.num_tokens :])


# FLOPs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOWERS)
def test_flops_of_a_tower_are_counted(kind):
    with torch.device("meta"):
        parts = forward_parts(vlm(encoder=tower(kind)), Sample())
    config, tokens = TOWERS[kind], 4
    width, inner = config["hidden_size"], 4 * config["hidden_size"] if kind == "dinov2" else config["intermediate_size"]
    block = 8 * tokens * width**2 + 4 * tokens * width * inner + 4 * tokens**2 * width
    patches = 2 * tokens * 3 * 14**2 * width
    # Class and register tokens come on top; norms, gates and rotations are little.
    assert 2 * block + patches <= parts[0].flops < 2.6 * (2 * block + patches)
    assert abs(parts[0].flops - patches - 2 * block) < 0.12 * parts[0].flops or kind not in (
        "siglip_vision_model",
        "siglip2_vision_model",
    )


def test_clip_l_336_is_counted_and_a_run_logs_its_flops():
    large = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
    arch = dict(large, model_type="clip_vision_model", image_size=336, patch_size=14)
    stage = Config(
        dict(
            model=dict(CONFIG, encoder=dict(type="HFVisionEncoder", arch=arch), reconstruction=[]),
            optim=dict(precision="float32"),
            train=["projector"],
            model_transforms=[],
            text_tokenizer=dict(type="ByteLevelBPE", vocab_size=300),
        )
    )
    tokens = 24**2 + 1
    blocks = 23 * (8 * tokens * 1024**2 + 4 * tokens * 1024 * 4096 + 4 * tokens**2 * 1024)
    patches = 2 * 24**2 * 3 * 14**2 * 1024
    assert StepFlops(stage).parts[0].flops == pytest.approx(blocks + patches, rel=2e-3)


def test_indices_are_in_their_tables_where_a_network_is_traced_on_the_cpu():
    class Places(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("index", torch.arange(4))
            self.table, self.convolution = nn.Embedding(4, 3), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, pixels):
            return self.convolution(pixels) + self.table(self.index).T[None, :, :, None]

    with torch.device("meta"):
        network = Places()
    assert compat.count_macs(network, ((1, 3, 4, 4),), torch.float32) == 16 * 3 * 3 * 9


def test_a_convolution_whose_padding_is_a_word_is_counted():
    valid = nn.Conv2d(3, 8, 2, stride=2, padding="valid", device="meta")
    assert compat.count_macs(valid, ((1, 3, 4, 4),), torch.float32) == 4 * 8 * 3 * 4
    plain = nn.Conv2d(3, 8, 2, stride=2, device="meta")
    assert compat.count_macs(plain, ((1, 3, 4, 4),), torch.float32) == 4 * 8 * 3 * 4 and plain.padding == (0, 0)


def test_flops_that_cannot_be_counted_are_told_and_take_nothing_else_away(monkeypatch):
    def broken(*_):
        raise RuntimeError("no\ntracing")

    monkeypatch.setattr("asvr.profiling.dry_run.parts_by_stage", broken)
    assert _flops_or_why(SimpleNamespace(stages={}), {}, Sample()) == "FLOPs are not counted: RuntimeError: no tracing"


def test_an_adapted_lm_head_has_flops():
    class Wrapped(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def forward(self, x):
            return self.base(x)

    with torch.device("meta"):
        model = vlm()
        expected = {part.name: part.flops for part in forward_parts(model, Sample())}
        model.llm.model.lm_head = Wrapped(model.llm.lm_head)
        assert {part.name: part.flops for part in forward_parts(model, Sample())} == expected


# Vocabularies and positions ------------------------------------------------------------------------------------


def gappy(folder, *, largest: int = 70):
    """A tokenizer's folder with 36 entries, whose ids have a gap."""
    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *(f"w{n}" for n in range(32))])}
    tokenizer = Tokenizer(models.WordLevel(words | {"last": largest}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return HFTokenizer(name=str(folder))


def stage_of(text_tokenizer, **llm_config) -> Config:
    stage = dict(text_tokenizer=text_tokenizer, train=["projector"], model_transforms=[], data=dict(max_length=60))
    return Config(dict(stage, model=dict(CONFIG, llm=dict(CONFIG["llm"], **llm_config))))


def test_the_largest_id_decides_and_not_the_number_of_entries(tmp_path):
    tokenizer = gappy(tmp_path / "gaps")
    assert (len(tokenizer), tokenizer.num_ids) == (36, 71)
    assert tokenizer.encode("w3 last") == [6, 70]
    model = HFCausalLM(arch=dict(GROUPED, model_type="llama"), vocab_size=tokenizer.num_ids)
    assert model.embed(torch.tensor([[70]])).shape == (1, 1, 32) and model.lm_head.out_features == 71
    HFCausalLM(arch=dict(GROUPED, model_type="llama"), vocab_size=50).model.save_pretrained(tmp_path / "llm")
    with pytest.raises(ValueError, match="has 50 embeddings, but the text tokenizer needs 71 for its ids up to 70"):
        HFCausalLM(name=str(tmp_path / "llm"), vocab_size=tokenizer.num_ids)
    own = dict(type="HFTokenizer", name=str(tmp_path / "gaps"))
    with pytest.raises(ValueError, match="has 50 embeddings, but the text tokenizer needs 71 for its ids up to 70"):
        build_meta(stage_of(own, name=str(tmp_path / "llm")))
    assert build_meta(stage_of(own)).llm.vocab_size == 71
    assert build_meta(stage_of(dict(type="HFTokenizer", name="nobody/nothing"))).llm.vocab_size == 32000


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rows_longer_than_the_positions_are_refused(kind):
    text = dict(type="ByteLevelBPE", vocab_size=300)
    own = dict(stages=dict(tune=dict(train=["projector"])), optim={}, schedule={}, runtime={})
    cfg = stage_of(text, arch=dict(LLMS[kind], model_type=kind)).to_dict() | own
    check_sizes(Recipe(Config(dict(cfg, data=dict(max_length=64)))))
    with pytest.raises(ValueError, match=r"data.max_length=65 \(stage tune\): the LLM has 64 positions"):
        check_sizes(Recipe(Config(dict(cfg, data=dict(max_length=65)))))


@pytest.mark.parametrize(
    ("arch", "positions"),
    [
        (dict(rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=1e4)), 256),
        (dict(rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=1e4)), 256),
        (
            dict(
                rope_parameters=dict(
                    rope_type="llama3",
                    factor=2.0,
                    rope_theta=1e4,
                    low_freq_factor=1.0,
                    high_freq_factor=4.0,
                    original_max_position_embeddings=16,
                )
            ),
            64,
        ),
        (dict(), 64),
    ],
)
def test_a_scaled_rotary_embedding_has_the_positions_that_it_reaches(arch, positions):
    assert HFCausalLM(arch=dict(GROUPED, model_type="llama", **arch), vocab_size=40).max_positions == positions


def test_an_llm_without_positions_has_no_limit():
    bloom = dict(model_type="bloom", hidden_size=32, n_layer=1, n_head=2)
    assert HFCausalLM(arch=bloom, vocab_size=40).max_positions is None


def test_an_evaluation_asks_for_no_position_that_is_not_there(caplog):
    model = vlm(reconstruction=[], llm=dict(type="HFCausalLM", arch=dict(LLMS["gpt2"], model_type="gpt2"))).eval()
    tokenizer = SimpleNamespace(eos_id=39, pad_id=0, decode=lambda ids: str(len(ids)), encode=None)

    def batch(length: int):
        ids = torch.ones(1, length, dtype=torch.long)
        empty = torch.zeros(0, dtype=torch.long)
        return SimpleNamespace(input_ids_BT=ids, attention_mask_BT=ids.bool(), num_images=0, visual_position_V=empty)

    with caplog.at_level(logging.WARNING, logger="asvr"):
        (answer,) = generate(model, batch(60), tokenizer, max_new_tokens=32)
    assert int(answer) <= 4 and "the LLM has 64 positions and the prompt 60 tokens" in caplog.text
    with pytest.raises(PromptTooLong, match="a prompt of 64 tokens: the LLM has 64 positions"):
        generate(model, batch(64), tokenizer, max_new_tokens=32)
    asked = [(n, dict(input_ids=[1] * length, images=["a"] * images)) for n, (length, images) in enumerate(ROOMS)]
    assert [n for n, _ in _with_room(model, asked)] == [0, 2]
    assert "2 of 4 questions take all of the LLM's 64 positions and are not asked" in caplog.text


ROOMS = [(63, 0), (64, 0), (60, 1), (61, 1)]  # an image takes 4 positions in the place of 1


# Configs -------------------------------------------------------------------------------------------------------


def test_a_field_that_a_model_reads_is_no_mistake():
    assert check_arch("llm.arch", dict(LLMS["qwen3_moe"], model_type="qwen3_moe")) == []
    (problem,) = check_arch("llm.arch", dict(EXPERTS, model_type="qwen3_moe", head_dims=8))
    assert problem.startswith("llm.arch.head_dims: qwen3_moe has no such field")
    (problem,) = check_arch("llm.arch", dict(LLMS["gpt2"], model_type="gpt2", head_dim=8))
    assert problem.startswith("llm.arch.head_dim: gpt2 has no such field")


@VISUAL_TOKENIZERS.register_module()
class PassesOn(SemanticTokenizer):
    def fit(self, batches, *, rounds, **kwargs):
        return super().fit(batches, **kwargs)


def test_a_fit_that_hands_arguments_on_takes_those_of_its_base():
    def problems(**fit):
        return _fit("model.reconstruction[0]", dict(tokenizer=dict(type="PassesOn"), fit=fit))

    assert problems(rounds=1, iterations=2, vectors_per_code=8) == []
    assert problems(rounds=1, iteration=2) == [
        "model.reconstruction[0].fit.iteration: unknown; did you mean 'iterations'?"
    ]
    assert problems(iterations=2) == ["model.reconstruction[0].fit.rounds is missing: PassesOn.fit() needs it"]


def test_a_registry_shows_what_it_has_before_anything_is_looked_up():
    code = (
        "import sys; import asvr; from asvr.registry import ENCODERS, HEADS, LLMS; lazy = 'torch' not in sys.modules; "
        "import json; print(json.dumps([str(ENCODERS), len(HEADS), sorted(LLMS.module_dict), lazy]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    shown, heads, llms, lazy = json.loads(done.stdout.splitlines()[-1])
    assert "HFVisionEncoder" in shown and "TimmEncoder" in shown
    assert heads == 3 and llms == ["HFCausalLM"]
    assert str(ENCODERS).count("asvr.models.encoders") >= 2
    before = "import sys; import asvr; import mmengine.registry; print('torch' not in sys.modules)"
    done = subprocess.run([sys.executable, "-c", before], cwd=ROOT, capture_output=True, text=True, check=True)
    assert lazy == (done.stdout.strip() == "True")  # no earlier than MMEngine itself
