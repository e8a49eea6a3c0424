"""Attention kernels: packed samples see themselves alone, whatever the kernel, the heads and the window."""

import logging

import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from vlm_helpers import LLAMA, build, collate, rows

from asvr.data.batch import Segments
from asvr.models import attention
from asvr.models.attention import (
    PREFIX,
    _interface,
    _probe,
    choose,
    no_mask,
    problem_of,
    use_attention,
    widths_of,
)
from asvr.models.attention_checks import check_isolation
from asvr.models.attention_kernels import KERNELS
from asvr.models.flash_attention import switched
from asvr.models.llms import HFCausalLM

LENGTHS = [3, 1, 6, 2]
MISTRAL = dict(LLAMA, model_type="mistral", num_attention_heads=4, num_key_value_heads=2, head_dim=4, sliding_window=3)
QWEN2 = dict(LLAMA, model_type="qwen2", num_attention_heads=4, num_key_value_heads=1)


def heads(query: int, key: int, length: int = sum(LENGTHS), rows: int = 1, **kwargs) -> list:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(rows, count, length, 8, generator=generator).to(**kwargs).requires_grad_()
        for count in (query, key, key)
    ]


def reference(q, k, v, allowed, scale=None):
    """Attention written out, with grouped heads repeated. allowed: (T, T), True where a token sees another."""
    groups = q.shape[1] // k.shape[1]
    k, v = (tensor.repeat_interleave(groups, dim=1) for tensor in (k, v))
    scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return (scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ v).transpose(1, 2)


def visible(lengths: list[int], causal: bool, window: int | None):
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(sum(lengths))
    allowed = sample[:, None] == sample[None]
    if causal:
        allowed &= place[:, None] >= place[None]
    if window is not None:
        allowed &= place[:, None] - place[None] < window
    return allowed


@pytest.mark.parametrize(("query", "key"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 2), (False, None)])
@pytest.mark.parametrize("packed", [True, False])
def test_sdpa_is_attention_written_out(query, key, causal, window, packed):
    inputs = heads(query, key)
    segments = Segments.of(LENGTHS) if packed else None
    out = KERNELS["sdpa"](*inputs, segments=segments, causal=causal, window=window, scale=0.3)
    expected = reference(*inputs, visible(LENGTHS if packed else [sum(LENGTHS)], causal, window), 0.3)
    torch.testing.assert_close(out, expected)
    for own, other in zip(
        torch.autograd.grad(out.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 2), (False, None)])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("query", "key"), [(4, 4), (4, 2)])
def test_xformers_gets_the_bias_and_the_groups_of_the_same_attention(causal, window, packed, query, key, monkeypatch):
    """xformers' kernels run on CUDA only; its biases tell on any device what they stand for."""
    ops = pytest.importorskip("xformers.ops", reason="xformers is not installed")

    def written_out(q, k, v, attn_bias=None, scale=None):
        assert q.shape == k.shape == v.shape  # grouped heads have no backward pass there
        length = q.shape[1]
        bias = torch.zeros(length, length) if attn_bias is None else attn_bias.materialize((length, length))
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        return reference(q, k, v, bias.isfinite(), scale)

    monkeypatch.setattr(ops, "memory_efficient_attention", written_out)
    inputs = heads(query, key)
    options = dict(segments=Segments.of(LENGTHS) if packed else None, causal=causal, window=window, scale=None)
    torch.testing.assert_close(KERNELS["xformers"](*inputs, **options), KERNELS["sdpa"](*inputs, **options))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["xformers", "varlen", "varlen_fa3", "varlen_fa4"])
@pytest.mark.parametrize(("query", "key"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("packed", [True, False])
def test_kernels_of_the_gpu_are_sdpa(name, query, key, packed):
    problem = problem_of(name, torch.device("cuda"), torch.bfloat16)
    if problem is not None and problem.startswith(("not installed", "needs a GPU of capability")):
        pytest.skip(f"{name}: {problem}")
    assert problem is None
    inputs = heads(query, key, dtype=torch.bfloat16, device="cuda")
    segments = Segments.of(LENGTHS).to("cuda") if packed else None
    options = dict(segments=segments, causal=True, window=None, scale=None)
    expected = KERNELS["sdpa"](*inputs, **options)
    with switched(name):
        torch.testing.assert_close(KERNELS[name](*inputs, **options), expected, rtol=2e-2, atol=2e-2)


def llm(arch: dict) -> HFCausalLM:
    torch.manual_seed(0)
    model = HFCausalLM(arch=arch, vocab_size=32)
    model.model.set_attn_implementation(PREFIX + "sdpa")
    return model.eval()


@pytest.mark.parametrize("arch", [LLAMA, MISTRAL, QWEN2], ids=lambda arch: arch["model_type"])
def test_packed_samples_are_the_samples_alone(arch):
    model = llm(arch)
    assert arch["model_type"] != "mistral" or model.model.config.sliding_window == 3
    embeds = torch.randn(1, sum(LENGTHS), 16, generator=torch.Generator().manual_seed(1))
    packed = model.hidden(embeds, {-1, 1}, segments=Segments.of(LENGTHS))
    alone = llm(arch)
    alone.model.set_attn_implementation("sdpa")  # transformers' own path
    for tap in (-1, 1):
        parts = [alone.hidden(sample, {-1, 1})[tap] for sample in embeds.split(LENGTHS, dim=1)]
        torch.testing.assert_close(packed[tap], torch.cat(parts, dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", [LLAMA, MISTRAL, QWEN2], ids=lambda arch: arch["model_type"])
def test_a_change_in_one_sample_changes_no_other(arch):
    model = llm(arch)
    embeds = torch.randn(1, sum(LENGTHS), 16, generator=torch.Generator().manual_seed(1))
    changed = embeds.clone()
    begin = sum(LENGTHS[:2])
    changed[:, begin : begin + LENGTHS[2]] += 1
    before, after = (model.hidden(e, {-1}, segments=Segments.of(LENGTHS))[-1] for e in (embeds, changed))
    same = (before == after).all(-1)[0].split(LENGTHS)
    assert [bool(part.all()) for part in same] == [True, True, False, True]
    model.zero_grad()
    embeds.requires_grad_()
    model.hidden(embeds, {-1}, segments=Segments.of(LENGTHS))[-1][:, :3].square().sum().backward()
    assert embeds.grad[:, :3].abs().min() > 0 and not embeds.grad[:, 3:].any()


@pytest.mark.parametrize("arch", [LLAMA, MISTRAL], ids=lambda arch: arch["model_type"])
def test_padded_rows_and_generation_are_transformers_own(arch):
    ours, theirs = llm(arch), llm(arch)
    theirs.model.set_attn_implementation("sdpa")
    embeds = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, :3] = False
    for padding in (None, mask):
        own, other = (model.hidden(embeds, {-1}, padding)[-1] for model in (ours, theirs))
        torch.testing.assert_close(own[mask], other[mask])
    own, other = (
        m.generate(embeds, mask.long(), max_new_tokens=6, do_sample=False, pad_token_id=0) for m in (ours, theirs)
    )
    assert torch.equal(own, other)


def test_the_choice_is_told_and_an_impossible_one_refused(caplog):
    model = build()
    with caplog.at_level(logging.INFO, logger="asvr"):
        assert use_attention(model, "auto", None) == "sdpa"
    assert "attention: sdpa (varlen: needs CUDA, this is cpu; xformers: needs CUDA" in caplog.text
    assert model.llm.own_kernels and model.encoder.model.config._attn_implementation == "asvr_sdpa"
    for name in ("xformers", "varlen"):
        with pytest.raises(ValueError, match=f"runtime.attention='{name}': needs CUDA, this is cpu; use 'auto'"):
            choose(name, torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="expected one of auto, sdpa, xformers, varlen"):
        choose("flash", torch.device("cpu"), torch.float32)


def test_the_widths_of_the_heads_reach_the_choice(monkeypatch):
    model, seen = build(llm=MISTRAL), []
    monkeypatch.setattr(attention, "choose", lambda *given: seen.append(given[-1]) or ("sdpa", "a test"))
    use_attention(model, "auto", None)
    assert seen == [[(4, 4)]]
    assert widths_of(torch.nn.Linear(2, 2)) == []  # an LLM without a configuration


def test_on_the_cpu_no_kernel_is_tried(monkeypatch):
    monkeypatch.setattr(attention, "_probe", lambda *args, **case: pytest.fail("it was tried"))
    assert use_attention(build(), "auto", torch.bfloat16) == "sdpa"


@pytest.mark.parametrize("width", [(8, 8), (12, 8)])
def test_the_probe_sees_a_kernel_that_is_wrong(width, monkeypatch):
    case = dict(width=width, window=4)
    assert _probe("sdpa", torch.device("cpu"), torch.float32, **case) == 0
    monkeypatch.setitem(KERNELS, "wrong", lambda *args, **kwargs: 1.5 * KERNELS["sdpa"](*args, **kwargs))
    assert _probe("wrong", torch.device("cpu"), torch.float32, **case) > 0.1


def test_every_part_of_the_model_uses_the_kernel(monkeypatch):
    model, called = build(), []
    use_attention(model, "sdpa", None)
    for layer in model.heads["semantic"].layers:
        layer.attention_kernel = lambda *args, **kwargs: called.append("head") or KERNELS["sdpa"](*args, **kwargs)
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: called.append("sdpa") or original(*a, **k))
    packed = collate(model, rows(), packed=True)
    model(packed)
    samples = len(packed.segments.lengths)
    assert called.count("head") == 1
    # the vision tower's blocks that the layer needs once, the LLM's sample by sample, the head's own
    assert called.count("sdpa") == 1 + 2 * samples + 1


def test_transformers_takes_the_stand_in_for_a_mask_as_it_is():
    from transformers.masking_utils import create_causal_mask

    model, embeds = llm(LLAMA), torch.zeros(2, 5, 16)
    mask = no_mask(embeds)
    assert create_causal_mask(model.model.config, embeds, mask, None, position_ids=None) is mask


@pytest.mark.parametrize("autocast", [True, False])
def test_a_kernel_gets_tensors_of_one_precision(autocast, monkeypatch):
    """Rotations are float32 under autocast, which SDPA alone would put right."""
    seen = []

    def kernel(query, key, value, **kwargs):
        seen.append({query.dtype, key.dtype, value.dtype})
        return KERNELS["sdpa"](query, key, value, **kwargs)

    AttentionInterface.register(PREFIX + "spy", _interface(kernel))
    AttentionMaskInterface.register(PREFIX + "spy", sdpa_mask)
    model = llm(LLAMA)
    model.model.set_attn_implementation(PREFIX + "spy")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        model.hidden(torch.randn(1, sum(LENGTHS), 16), {-1}, segments=Segments.of(LENGTHS))
    assert seen == [{torch.bfloat16 if autocast else torch.float32}] * LLAMA["num_hidden_layers"]


def test_dropout_of_attention_is_refused_where_no_kernel_has_it():
    model = llm(dict(LLAMA, attention_dropout=0.1)).train()
    with pytest.raises(ValueError, match="attention_dropout=0.1: does not work with packed rows, set it to 0"):
        model.hidden(torch.randn(1, sum(LENGTHS), 16), {-1}, segments=Segments.of(LENGTHS))
    assert model.hidden(torch.randn(2, 5, 16), {-1})[-1].isfinite().all()
    mistral = llm(dict(LLAMA, model_type="mistral", attention_dropout=0.1, sliding_window=2)).train()
    with pytest.raises(ValueError, match="attention_dropout=0.1: does not work with a sliding window, set it to 0"):
        mistral.hidden(torch.randn(2, 5, 16), {-1})


LFM2 = dict(
    model_type="lfm2",
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    layer_types=["conv", "full_attention"],
)


def test_an_llm_whose_samples_would_see_one_another_is_not_packed():
    for arch in (LLAMA, MISTRAL, QWEN2):
        check_isolation(llm(arch), torch.bfloat16)
    dropping = llm(dict(GPT2, resid_pdrop=0.5)).train()
    check_isolation(dropping, None)
    assert dropping.training
    with pytest.raises(ValueError, match="data.pack: HFCausalLM lets a sample of a row see the one before"):
        check_isolation(llm(LFM2), None)
    without = HFCausalLM(arch=LLAMA, vocab_size=32)
    with pytest.raises(ValueError, match="data.pack: HFCausalLM does not work with the attention kernels"):
        check_isolation(without, None)


OPT = dict(model_type="opt", hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, dropout=0.0)
OPT |= dict(word_embed_proj_dim=16, max_position_embeddings=64)
GPT2 = dict(model_type="gpt2", n_embd=16, n_layer=2, n_head=2, n_positions=64)
GPT2 |= dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


@pytest.mark.parametrize("arch", [OPT, GPT2], ids=lambda arch: arch["model_type"])
def test_llms_with_learned_positions(arch):
    ours, theirs = llm(arch), llm(arch)
    theirs.model.set_attn_implementation("sdpa")
    embeds = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours.hidden(embeds, {-1})[-1], theirs.hidden(embeds, {-1})[-1])
    packed = ours.hidden(embeds.view(1, 14, 16), {-1}, segments=Segments.of([7, 7]))[-1]
    torch.testing.assert_close(packed.view(2, 7, 16), ours.hidden(embeds, {-1})[-1], rtol=1e-4, atol=1e-5)
