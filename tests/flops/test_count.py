"""FLOPs against formulas, on the meta device."""

import pytest
import torch
import torch.nn.functional as F
from engine_helpers import tiny_model
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from asvr.flops.count import Part, _with_last, flops_of, recomputed_parts, training_factor
from asvr.models.attention import set_kernel
from asvr.models.encoders import TimmEncoder
from asvr.models.llms import HFCausalLM
from asvr.models.trainable import trained_shares
from asvr.models.transforms import transform_and_train

B, T, HEADS, KV_HEADS, WIDTH = 2, 12, 4, 2, 8


def attend(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@pytest.mark.parametrize("kv_heads", [HEADS, KV_HEADS])
def test_attention_is_two_products_for_every_query_head(kv_heads):
    q, kv = (B, HEADS, T, WIDTH), (B, kv_heads, T, WIDTH)
    assert flops_of(attend, [], q, kv, kv) == 2 * 2 * B * HEADS * T * T * WIDTH


def test_a_multiply_accumulate_is_two_flops():
    assert flops_of(nn.Linear(5, 7, device="meta"), [], (3, 5)) == 2 * 3 * 5 * 7


@pytest.mark.parametrize("kv_heads", [HEADS, KV_HEADS])
def test_an_llm_is_its_matrices_and_its_attention(kv_heads):
    hidden, inner, layers = HEADS * WIDTH, 48, 3
    arch = dict(
        model_type="llama",
        vocab_size=50,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
    )
    with torch.device("meta"):
        llm = HFCausalLM(arch=arch).train()
    counted = flops_of(lambda x: llm.hidden(x)[-1], [llm], (1, T, hidden))
    projections = hidden * (2 * hidden + 2 * kv_heads * WIDTH) + 3 * hidden * inner
    # transformers 5.17 makes the angles of its rotary embedding by a (tiny) matrix product.
    assert counted == pytest.approx(layers * 2 * (T * projections + 2 * T * T * hidden), rel=1e-3)
    assert llm.training


def test_a_timm_network_that_pads_as_tensorflow_does():
    """EfficientNet-Lite0 is published with 407 M multiply-adds; its classifier and last convolution are not used."""
    with torch.device("meta"):
        encoder = TimmEncoder(model="tf_efficientnet_lite0")
    macs = flops_of(encoder, [encoder], (1, 3, 224, 224)) / 2
    assert 407e6 - 7 * 7 * 320 * 1280 - 1280 * 1000 == pytest.approx(macs, rel=0.05)


@pytest.mark.parametrize(
    ("component", "train", "factor"),
    [
        ("encoder", ["projector"], 1),
        ("tokenizer.semantic", ["projector", "heads", "llm"], 1),
        ("projector", ["projector"], 3),
        ("llm", ["projector", "heads"], 2),
        ("llm", ["heads"], 1),
        ("llm", ["llm"], 3),
        ("heads", ["llm"], 2),
        ("heads", ["heads"], 3),
    ],
)
def test_the_backward_pass_costs_what_is_trained(component, train, factor):
    assert training_factor(Part("part", component, 1), train, recomputed=set(), cached=False) == factor


def test_what_is_recomputed_costs_once_more():
    blocks, again = Part("blocks", "llm", 1), dict(recomputed={"blocks"}, cached=False)
    assert training_factor(blocks, ["llm"], **again) == 4
    assert training_factor(blocks, ["heads"], **again) == 1  # it has no backward pass
    assert training_factor(Part("other", "llm", 1), ["llm"], **again) == 3


@pytest.mark.parametrize("inputs_trained", [True, False])
@pytest.mark.parametrize("mode", ["none", "full"])
def test_a_training_step_is_what_torch_counts(mode, inputs_trained):
    """The last product of a checkpointed block is not computed again. Without gradients of the inputs, the first
    block's are not computed either."""
    arch = dict(model_type="llama", vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=8)
    arch |= dict(num_attention_heads=4, num_key_value_heads=2)
    with torch.device("meta"):
        llm = HFCausalLM(arch=arch, activation_checkpointing=mode).train()
    set_kernel(llm, "sdpa")
    flops, last = _with_last(lambda: flops_of(lambda x: llm.hidden(x)[-1], [llm], (1, 20, 64)), llm)
    part = Part("LLM blocks", "llm", flops, last)
    recomputed = {"LLM blocks"} if mode == "full" else set()
    factor = training_factor(part, ["llm"], recomputed=recomputed, cached=False)
    assert factor == 3 if mode == "none" else 3.7 < factor < 3.9
    embeds_BTH = torch.zeros(1, 20, 64, device="meta", requires_grad=inputs_trained)
    with FlopCounterMode(display=False) as counter:
        llm.hidden(embeds_BTH)[-1].sum().backward()
    assert counter.get_total_flops() == pytest.approx(flops * factor, rel=1e-3 if inputs_trained else 0.05)


def test_parts_with_full_checkpointing_are_recomputed():
    head = dict(activation_checkpointing="full")
    targets = [dict(name="a", head=head), dict(name="b", head=dict(activation_checkpointing="selective"))]
    model = Config(dict(reconstruction=targets, llm=head, encoder=dict()))
    assert recomputed_parts(model) == {"head a", "LLM blocks"}


def test_a_further_pass_of_the_llm_is_recomputed_as_the_llm_is():
    def factor(component, recomputed):
        part = Part("masked pass a", component, 100, last=20, rows=True)
        return training_factor(part, ["llm", "heads"], recomputed=recomputed, cached=False)

    assert factor("llm", {"LLM blocks"}) == 3.8 and factor("llm", {"head a"}) == 3
    assert factor("teachers", {"LLM blocks"}) == 1


def test_what_is_cached_costs_nothing():
    def factor(component, train):
        return training_factor(Part("part", component, 1), train, recomputed=set(), cached=True)

    assert [factor(c, ["projector"]) for c in ("encoder", "tokenizer.semantic", "projector")] == [0, 0, 3]


@pytest.mark.parametrize(
    ("transforms", "train"),
    [
        ([dict(type="Lora", layers=["llm.*.layers"], r=16)], ["llm"]),
        ([], ["llm.*.mlp"]),
        ([], ["llm.*.self_attn", "llm.*norm*"]),
    ],
)
def test_what_is_trained_in_part_costs_a_part(transforms, train):
    """Against torch's counter, for an LLM that a gradient passes through."""
    model = tiny_model()
    transform_and_train(model, transforms, train)
    llm, model = model.llm, model.to("meta")
    set_kernel(llm, "sdpa")
    flops = flops_of(lambda x: llm.hidden(x)[-1], [llm], (1, 20, 16))
    shares = trained_shares(model)
    factor = training_factor(Part("LLM blocks", "llm", flops), shares, recomputed=set(), cached=False)
    embeds_BTH = torch.zeros(1, 20, 16, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        llm.train().hidden(embeds_BTH)[-1].sum().backward()
    assert 2 < factor < 3 and counter.get_total_flops() == pytest.approx(flops * factor, rel=0.1)
