"""The sizes of attention, layer by layer, against the modules that transformers builds."""

from types import SimpleNamespace

import pytest
import torch
from llm_families import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config

from asvr.base.arch import causal_problem, check_arch
from asvr.flops.analytic import llm_blocks
from asvr.flops.count import flops_of
from asvr.models.attention import set_kernel
from asvr.models.attention_sizes import AttentionSizes, attention_sizes, head_widths
from asvr.models.llms import HFCausalLM

GEMMA4 = FAMILIES["gemma4"]
LATENT = dict(
    model_type="deepseek_v3",
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=6,
    first_k_dense_replace=1,
)


def on_meta(**arch) -> HFCausalLM:
    with torch.device("meta"):
        return HFCausalLM(arch=arch, vocab_size=32)


def test_layers_of_gemma4_have_their_own_widths():
    llm = on_meta(**GEMMA4)
    found = attention_sizes(llm.model.config)
    assert [sizes.width for sizes in found] == [8, 16]
    for sizes, block in zip(found, llm.blocks, strict=True):
        assert block.self_attn.q_proj.out_features == sizes.heads * sizes.width
        assert block.self_attn.k_proj.out_features == sizes.key_heads * sizes.width
    assert head_widths(llm.model.config) == [(8, 8), (16, 16)]


def test_fields_of_gemma4_are_known():
    assert check_arch("model.llm.arch", GEMMA4) == []
    (problem,) = check_arch("model.llm.arch", GEMMA4 | dict(globl_head_dim=16))
    assert "model.llm.arch.globl_head_dim: gemma4_text has no such field" in problem


def test_a_folder_is_compared_with_an_arch_layer_by_layer(tmp_path, caplog):
    arch = dict(GEMMA4, vocab_size=32, pad_token_id=0)
    AutoConfig.for_model(**arch).save_pretrained(tmp_path)
    HFCausalLM(name=str(tmp_path), arch=arch, load_weights=False)
    assert "differs from `arch`" not in caplog.text
    HFCausalLM(name=str(tmp_path), arch=dict(arch, head_dim=4), load_weights=False)
    assert "head_dim=[8, 16] (config: 4)" in caplog.text


@pytest.mark.parametrize("model_type", ["gemma4_text", "gemma3n_text"])
def test_embeddings_in_every_layer_are_refused(model_type):
    """They need token ids, which visual tokens do not have."""
    arch = dict(model_type=model_type, hidden_size_per_layer_input=4)
    (problem,) = check_arch("model.llm.arch", arch, causal_problem)
    assert "is an LLM with embeddings in every layer (hidden_size_per_layer_input=4)" in problem
    with pytest.raises(ValueError, match="visual tokens have none: expected one without them, such as gemma3_text"):
        on_meta(**arch)


@pytest.mark.parametrize("family", [name for name in FAMILIES if "mamba" not in name and name != "gemma4"])
def test_the_families_have_one_width(family):
    config = AutoConfig.for_model(**FAMILIES[family])
    width = FAMILIES[family].get("head_dim") or config.hidden_size // config.num_attention_heads
    assert head_widths(config) == [(width, width)]


@pytest.mark.parametrize("family", ["mamba", "mamba2", "falcon-mamba"])
def test_a_model_without_attention_has_no_widths(family):
    assert head_widths(AutoConfig.for_model(**FAMILIES[family])) == []


def test_latent_attention_has_other_values():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LATENT))
    own = model.model.layers[0].self_attn
    assert head_widths(model.config) == [(own.qk_head_dim, own.v_head_dim)] == [(12, 6)]


def test_a_composite_configuration_has_the_widths_of_its_language_model():
    text = dict(hidden_size=16, num_attention_heads=2, num_key_value_heads=1, head_dim=24, num_hidden_layers=2)
    config = Gemma3Config(text_config=text, vision_config=dict(hidden_size=20, num_attention_heads=2))
    assert attention_sizes(config) == 2 * [AttentionSizes(heads=2, key_heads=1, width=24, value_width=24)]


def test_a_version_of_transformers_without_fields_by_layer():
    config = SimpleNamespace(num_attention_heads=2, hidden_size=16, head_dim=8, global_head_dim=32)
    assert head_widths(config) == [(8, 8), (32, 32)]


@pytest.mark.parametrize("arch", [GEMMA4, LATENT | dict(num_hidden_layers=2), FAMILIES["qwen3"], FAMILIES["jamba"]])
def test_the_formula_is_the_count_or_is_left_out(arch):
    """Latent attention and experts have other weights than the formula."""
    llm, tokens = on_meta(**arch), 12
    set_kernel(llm, "sdpa")
    found = llm_blocks(llm, tokens)
    if arch["model_type"] in ("gemma4_text", "qwen3"):
        counted = flops_of(lambda embeds: llm.hidden(embeds)[-1], [llm], (1, tokens, llm.hidden_size))
        assert found == pytest.approx(counted, rel=0.01)
    else:
        assert found is None
