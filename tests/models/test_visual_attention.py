"""Visual tokens that see each other: who sees whom, in padded and packed rows, and in generation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from asvr.data.batch import Batch, Cells, Segments
from asvr.models.attention import set_kernel
from asvr.models.attention_checks import check_rules
from asvr.models.llms import HFCausalLM
from asvr.models.visual_attention import AttentionRule, rule_of

FAMILIES = {
    "llama": dict(model_type="llama", num_key_value_heads=2),
    "mistral": dict(model_type="mistral", num_key_value_heads=2, sliding_window=4),
    "qwen2": dict(model_type="qwen2", num_key_value_heads=4),
}


def llm_of(family: str) -> HFCausalLM:
    torch.manual_seed(0)
    sizes = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    llm = HFCausalLM(arch=dict(sizes, **FAMILIES[family])).eval()
    set_kernel(llm, "sdpa")
    return llm


def rule_with(images: list[list[int]], real: list[list[bool]] | None = None) -> AttentionRule:
    image_BT = torch.tensor(images)
    seen_BT = torch.ones_like(image_BT)
    return AttentionRule(image_BT, seen_BT, seen_BT, None if real is None else torch.tensor(real))


def expected(rule: AttentionRule, row: int, window: int | None) -> torch.Tensor:
    """Token by token, in words of the module's text."""
    image, query, key = (part[row].tolist() for part in (rule.image_BT, rule.query_BT, rule.key_BT))
    found = torch.zeros(len(image), len(image), dtype=torch.bool)
    for q in range(len(image)):
        for k in range(len(image)):
            if image[q] == image[k] and image[q] >= 0:
                found[q, k] = bool(query[q] & key[k])
            else:
                found[q, k] = k <= q and (window is None or q - k < window) and key[k] != 0
    return found


@pytest.mark.parametrize("window", [None, 3])
def test_a_mask_is_the_rule_in_words(window):
    generator = torch.Generator().manual_seed(0)
    image_BT = torch.tensor([[-1, 0, 0, 0, 0, -1, 1, 1, -1], [-1, -1, 2, 2, 2, 2, -1, -1, -1]])
    query_BT, key_BT = (torch.randint(0, 8, image_BT.shape, generator=generator) for _ in range(2))
    query_BT[image_BT < 0] = key_BT[image_BT < 0] = 1
    rule = AttentionRule(image_BT, query_BT, key_BT)
    (mask,) = rule.masks(window)
    assert mask.shape == (2, 1, 9, 9)
    for row in range(2):
        assert torch.equal(mask[row, 0], expected(rule, row, window))
    packed = replace(rule, image_BT=image_BT[:1], query_BT=query_BT[:1], key_BT=key_BT[:1], lengths=(5, 4))
    first, second = packed.masks(window)
    assert torch.equal(first, mask[0, 0, :5, :5]) and second.shape == (4, 4)
    assert rule.masks(window)[0] is mask, "made once"


def test_padding_on_the_left_is_seen_by_itself_alone():
    (mask,) = rule_with([[-1, -1, -1, 0, 0, -1]], [[False, False, True, True, True, True]]).masks(None)
    assert mask[0, 0, :2].tolist() == [[True, False, False, False, False, False], [False, True] + [False] * 4]
    assert not mask[0, 0, 2:, :2].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_images_tokens_see_each_other_and_text_stays_causal(family):
    llm, rule = llm_of(family), rule_with([[-1, 0, 0, 0, -1, -1]])
    embeds = torch.randn(1, 6, 32)
    whole = llm.hidden(embeds, {-1}, rule=rule)[-1]
    for place, moved in ((3, [1, 2, 3, 4, 5]), (5, [5]), (4, [4, 5]), (0, [0, 1, 2, 3, 4, 5])):
        changed = embeds.clone()
        changed[0, place] += 1
        difference = (llm.hidden(changed, {-1}, rule=rule)[-1] - whole).abs().amax(-1)[0]
        found = (difference > 0).nonzero().flatten().tolist()
        assert set(found) <= set(moved), "nothing sees what it must not"
        assert place in found and (family != "llama" or found == moved)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_causal_rule_is_causal_attention(family):
    llm, embeds = llm_of(family), torch.randn(2, 7, 32)
    rule = rule_with([[-1] * 7] * 2)
    assert torch.allclose(llm.hidden(embeds, {-1}, rule=rule)[-1], llm.hidden(embeds, {-1})[-1], atol=1e-6)


def batch_of(images: list[list[int]], lengths: list[int] | None = None) -> Batch:
    """With one image a sample, of 3 tokens each."""
    rows, width = len(images), len(images[0])
    positions = [row * width + place for row, image in enumerate(images) for place, i in enumerate(image) if i >= 0]
    nothing = torch.zeros(0, dtype=torch.long)
    return Batch(
        input_ids_BT=torch.zeros(rows, width, dtype=torch.long),
        attention_mask_BT=torch.ones(rows, width, dtype=torch.bool),
        text_source_S=nothing,
        text_target_S=nothing,
        visual_position_V=torch.tensor(positions),
        num_cells=3,
        crops=[1] * (len(positions) // 3),
        segments=None if lengths is None else Segments.of(lengths),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_samples_are_what_they_are_alone(family):
    llm, samples = llm_of(family), torch.randn(2, 6, 32)
    padded = batch_of([[-1, 0, 0, 0, -1, -1], [1, 1, 1, -1, -1, -1]])
    alone = llm.hidden(samples, {-1}, rule=rule_of(padded))[-1]
    packed = batch_of([[-1, 0, 0, 0, -1, -1, 1, 1, 1, -1, -1, -1]], [6, 6])
    row = samples.flatten(0, 1)[None]
    together = llm.hidden(row, {-1}, segments=packed.segments, rule=rule_of(packed))[-1]
    assert torch.allclose(together.view_as(alone), alone, atol=1e-5)
    other = row.clone()
    other[0, :6] += 1
    moved = llm.hidden(other, {-1}, segments=packed.segments, rule=rule_of(packed))[-1]
    assert torch.equal(moved[0, 6:], together[0, 6:]), "a sample sees nothing of the one before"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "images", [[-1, 0, 0, 0, 0, -1, -1], [-1, -1, -1, 0, 0, 0, 0]], ids=["text last", "image last"]
)
def test_cached_generation_is_uncached_generation(family, images):
    """Prompts are read by the rule, answers are added causally; padding on the left, beams and copies too."""
    llm, embeds = llm_of(family), torch.randn(2, 7, 32)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 0] = False
    rule = replace(rule_with([images] * 2), real_BT=mask)
    if family == "mistral" and images[-1] >= 0:
        with pytest.raises(ValueError, match="put text after the image"):
            llm.generate(embeds, mask, rule=rule, max_new_tokens=2)
        return
    found = llm.generate(embeds, mask, rule=rule, max_new_tokens=5, do_sample=False)
    row, real, own = embeds, mask, rule.image_BT
    for step in range(5):
        seen = torch.ones_like(own)
        hidden = llm.hidden(row, {-1}, real, rule=AttentionRule(own, seen, seen, real))[-1]
        token = llm.lm_head(hidden[:, -1]).argmax(-1)
        assert torch.equal(found[:, step], token)
        row = torch.cat([row, llm.embed(token)[:, None]], 1)
        real = torch.cat([real, torch.ones(2, 1, dtype=torch.bool)], 1)
        own = torch.cat([own, torch.full((2, 1), -1)], 1)
    causal = rule_with([[-1] * 7] * 2, mask.tolist())
    beams = dict(max_new_tokens=4, do_sample=False, num_beams=3, num_return_sequences=2)
    assert torch.equal(llm.generate(embeds, mask, rule=causal, **beams), llm.generate(embeds, mask, **beams))


def test_attention_weights_of_an_answer_are_those_behind_a_prompt_read_by_the_rule():
    llm, embeds = llm_of("llama"), torch.randn(1, 6, 32)
    rule = rule_with([[-1, 0, 0, 0, -1, -1]])
    layers, causal = llm.attention(embeds, 4, rule), llm.attention(embeds, 4)
    assert [tuple(layer.shape) for layer in layers] == [(1, 4, 2, 6)] * 2
    assert torch.allclose(layers[0], causal[0]), "the first layer's inputs are the same"
    assert not torch.allclose(layers[1], causal[1]), "those of the second have seen more"
    assert torch.allclose(layers[1].sum(-1), torch.ones(1, 4, 2))


class Forgetful(nn.Module):
    """An LLM that takes no rule."""

    own_kernels = False

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def test_an_llm_that_follows_no_rule_is_refused():
    check_rules(llm_of("llama"))
    with pytest.raises(ValueError, match="does not work with the attention kernels"):
        check_rules(Forgetful())
    llm = llm_of("llama")
    llm.hidden = lambda embeds, taps, rule: HFCausalLM.hidden(llm, embeds, taps)  # as blocks that drop the rule
    with pytest.raises(ValueError, match="does not pass the attention rule on to its layers"):
        check_rules(llm)


@pytest.mark.parametrize(
    "experts",
    [
        dict(model_type="mixtral", num_local_experts=4),
        dict(model_type="qwen3_moe", num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8),
    ],
)
def test_rounding_of_experts_is_no_broken_rule(experts):
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    for seed in range(3):
        torch.manual_seed(seed)
        llm = HFCausalLM(arch=dict(sizes, num_key_value_heads=2, **experts))
        set_kernel(llm, "sdpa")
        check_rules(llm)


def test_tiles_of_an_image_and_its_separators_are_one_image():
    batch = batch_of([[-1] + [0] * 6 + [-1]])
    cells = Cells(torch.tensor([0, 1, 3, 4]), np.array([0, 1, 3, 4]), [(1, 2), (1, 2)], *(torch.tensor([3, 6]),) * 2)
    batch = replace(batch, visual_position_V=torch.tensor([1, 2, 4, 5]), cells=cells, crops=[2])
    assert rule_of(batch).image_BT.tolist() == [[-1, 0, 0, 0, 0, 0, 0, -1]]
    assert math.prod(rule_of(batch).masks(None)[0].shape) == 64
