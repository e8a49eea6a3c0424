"""Activation checkpointing: the same gradients from less memory, in every component that has it."""

import pytest
import torch
from vlm_helpers import DEPTH_HEAD, ENCODER, SEMANTIC, build, collate, rows, step_gradients

from asvr.models.checkpointing import is_product
from asvr.models.heads import DepthTransformerHead, depth_transformer


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_a_step_has_the_same_gradients(mode):
    own = dict(SEMANTIC, tokenizer=dict(SEMANTIC["tokenizer"], encoder=ENCODER))
    options = dict(train=("encoder", "projector", "heads", "llm"))
    plain = build(reconstruction=[own], **options)
    target = dict(own, head=dict(DEPTH_HEAD, activation_checkpointing=mode))
    checkpointed = build(reconstruction=[target], encoder=dict(ENCODER, activation_checkpointing=mode), **options)
    expected, _ = step_gradients(plain, [collate(plain, rows())])
    found, _ = step_gradients(checkpointed, [collate(checkpointed, rows())])
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_head_in_chunks_is_the_head(monkeypatch):
    """Positions have nothing to do with one another: the same states and gradients, fewer kept."""
    monkeypatch.setattr(depth_transformer, "POSITIONS", dict(cpu=3))
    sizes = dict(hidden_size=8, codebook_sizes=[5, 5], code_width=4, width=8, layers=2, num_heads=2)
    torch.manual_seed(0)
    inputs = torch.randn(8, 8, dtype=torch.float64), torch.randn(8, 2, 4, dtype=torch.float64)
    whole = DepthTransformerHead(**sizes).double()
    chunked = DepthTransformerHead(**sizes, activation_checkpointing="full").double()
    chunked.load_state_dict(whole.state_dict())
    results = []
    for head in (whole, chunked):
        hidden = inputs[0].clone().requires_grad_()
        states, kept = kept_bytes(head, hidden, inputs[1])
        states.square().sum().backward()
        results.append(([states, hidden.grad, *(p.grad for p in head.parameters() if p.grad is not None)], kept))
    for own, other in zip(results[1][0], results[0][0], strict=True):
        torch.testing.assert_close(own, other)
    assert results[1][1] < results[0][1] / 4
    assert chunked(inputs[0][:0], inputs[1][:0]).shape == (0, 2, 8)


def kept_bytes(head, *inputs) -> tuple:
    """A result, and how much is kept for the backward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        states = head(*inputs)
    return states, sum(kept)


def test_a_block_is_computed_again_where_it_should():
    sizes = dict(hidden_size=8, codebook_sizes=[5, 5], code_width=4, width=8, layers=2, num_heads=2)
    calls = []
    for mode, times in (("none", 1), ("full", 2)):
        calls.clear()
        head = DepthTransformerHead(**sizes, activation_checkpointing=mode)
        for layer in head.layers:
            layer.register_forward_pre_hook(lambda *_: calls.append(1))
        head(torch.randn(3, 8), torch.randn(3, 2, 4)).sum().backward()
        assert len(calls) == times * len(head.layers)
        calls.clear()
        head.eval()(torch.randn(3, 8), torch.randn(3, 2, 4)).sum().backward()
        assert len(calls) == len(head.layers)


class Named:
    """An operation of a library that is not here."""

    def __init__(self, name: str):
        self.name = lambda: name


def test_products_are_told_by_their_names():
    aten = torch.ops.aten
    assert is_product(aten.mm.default) and is_product(aten.addmm.default) and is_product(aten.bmm.default)
    assert is_product(aten._scaled_dot_product_flash_attention_for_cpu.default)
    assert all(is_product(Named(name)) for name in ("xformers_flash::flash_fwd", "torch_attn::_varlen_attn"))
    assert not is_product(aten.mul.Tensor) and not is_product(aten.gelu.default) and not is_product(aten.add.Tensor)
