"""Adapters on layers of 4 bits: what is rounded, what is trained and saved, and that merged is the same."""

import sys

import pytest
import torch
import torch.nn.functional as F
from engine_helpers import collate, item, tiny_model
from PIL import Image
from torch import nn

from asvr.engine.saved import saved_tensors
from asvr.flops.count import Sample, forward_parts
from asvr.models.component import fingerprint
from asvr.models.trainable import packed_weights, trained_shares
from asvr.models.transforms import apply_transforms, merge_transforms, transform_and_train
from asvr.models.transforms.qlora import NF4, Nf4Linear, quantize

pytest.importorskip("peft", reason="peft is not installed")
QLORA = dict(type="QLora", layers=["llm.*.layers", "llm.*.lm_head"], r=2)


def batch_of(model):
    return collate(model)([item(image=Image.new("RGB", (8, 8), "red")), item()])


def losses(model) -> dict[str, float]:
    batch = batch_of(model)
    return {key: value.sum().item() for key, value in model.eval()(batch).items() if "_" not in key}


def adapted(source: str | None = "a/llm", dtype=torch.float32, **changes):
    """With adapters that do something, as if they had been trained."""
    model = tiny_model()
    model.llm.source = source
    model.llm.to(dtype)
    transform_and_train(model, [QLORA | changes], ["projector", "llm"])
    for key, parameter in model.named_parameters():
        if ".lora_B." in key:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


# A layer --------------------------------------------------------------------------------------------------


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(96, 64).requires_grad_(False)


def test_a_layer_computes_with_its_rounded_weight(layer):
    own = Nf4Linear(layer)
    weight = own.weight_in(torch.float32)
    x, other = (torch.randn(3, 5, 96, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    (own(x) ** 2).sum().backward()
    (F.linear(other, weight, layer.bias) ** 2).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    error, size = (weight - layer.weight).square().mean().sqrt(), layer.weight.square().mean().sqrt()
    assert 0.02 < error / size < 0.12


def test_a_weight_takes_four_bits_and_a_scale(layer):
    own = Nf4Linear(layer)
    assert sum(p.numel() * p.element_size() for p in (own.codes, own.scales)) * 8 / layer.weight.numel() == 4.5
    assert own.codes.numel() + own.scales.numel() + own.uncounted == layer.weight.numel()


def test_each_number_is_the_nearest_one(layer):
    layer.weight[0] = 0.0  # a block without a size
    blocks = layer.weight.reshape(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    nearest = torch.tensor(NF4) * scales.unsqueeze(-1)
    expected = (blocks.unsqueeze(-1) - nearest).abs().amin(-1)
    found = (Nf4Linear(layer).weight_in(torch.float32).reshape(-1, 64) - blocks).abs()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    assert Nf4Linear(layer).weight_in(torch.float32)[0].eq(0).all()


def test_numbers_are_those_of_torchao():
    nf4 = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    theirs = nf4.to_nf4(weight, 64, 256).quantized_data  # of a table with four digits
    assert (quantize(weight)[0].flatten() != theirs).float().mean() < 1e-3


def test_the_number_of_threads_changes_nothing():
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(quantize(weight))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_products_under_autocast_are_in_half_precision(layer):
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(4, 96, requires_grad=True)
        out = Nf4Linear(layer)(x)
        out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and x.grad.dtype == torch.float32


def test_a_compiled_layer_computes_the_same(layer):
    torch._dynamo.reset()
    own = Nf4Linear(layer)
    compiled = torch.compile(own, backend="aot_eager", fullgraph=True, dynamic=True)
    x, other = (torch.randn(3, 96, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    out, expected = compiled(x), own(other)
    out.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(x.grad, other.grad)


# A model --------------------------------------------------------------------------------------------------


def test_the_adapters_alone_are_trained_and_saved():
    model = adapted().train()
    trained = {key for key, p in model.llm.named_parameters() if p.requires_grad}
    assert trained == model.llm.apart == saved_tensors(model.llm).keys()
    assert len(trained) == 2 * (7 + 1) and all(".lora_" in key for key in trained)
    model(batch_of(model), model.count_targets([batch_of(model)]))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.llm.parameters() if p.requires_grad)


def test_what_stands_in_no_file_is_saved():
    model = adapted(source=None)
    assert saved_tensors(model.llm).keys() == model.llm.state_dict().keys()
    model = tiny_model()
    model.llm.source, model.llm.apart = "a/llm", frozenset({"model.model.layers.0.mlp.up_proj.weight"})
    transform_and_train(model, [QLORA], ["projector"])
    base = {key for key in saved_tensors(model.llm) if ".lora_" not in key}
    up = "model.model.layers.0.mlp.up_proj.base_layer"
    assert base == {f"{up}.codes", f"{up}.scales"}


def test_new_adapters_leave_what_rounding_changes():
    model, plain = tiny_model(), tiny_model()
    apply_transforms(model, [QLORA])
    found, expected = losses(model), losses(plain)
    assert found != expected and found == pytest.approx(expected, rel=0.05)
    assert fingerprint(model.encoder) == fingerprint(plain.encoder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_is_unmerged(dtype):
    model, plain = adapted(dtype=dtype), tiny_model()
    before = losses(model)
    merge_transforms(model)
    assert losses(model) == pytest.approx(before, rel=1e-5 if dtype == torch.float32 else 2e-2)
    assert model.state_dict().keys() == plain.state_dict().keys() and not model.transforms
    assert {p.dtype for p in model.llm.parameters()} == {dtype}
    assert model.llm.source is None and model.llm.apart == frozenset()  # no file holds what is merged
    model.train_only(["llm"])
    assert all(p.requires_grad for p in model.llm.parameters())


def test_sizes_are_counted_as_without():
    models = [tiny_model(), tiny_model()]
    for kind, model in zip(("Lora", "QLora"), models, strict=True):
        transform_and_train(model, [QLORA | dict(type=kind)], ["projector", "llm"])
    lora, qlora = models
    assert packed_weights(lora) == 0
    sizes = [sum(p.numel() for p in model.llm.parameters()) + packed_weights(model.llm) for model in models]
    assert sizes[0] == sizes[1]
    assert trained_shares(qlora) == trained_shares(lora)
    assert forward_parts(qlora.to("meta"), Sample()) == forward_parts(lora.to("meta"), Sample())


def test_what_does_not_fit_is_one_line(monkeypatch):
    with pytest.raises(ValueError, match="QLora: llm.model.lm_head shares its weight with another layer"):
        apply_transforms(tiny_model(tied=True), [QLORA])
    with pytest.raises(ValueError, match="the llm already has adapters: name all of its layers in one transform"):
        apply_transforms(tiny_model(), [QLORA, QLORA | dict(layers=["llm.*.mlp"])])
    with pytest.raises(ValueError, match="llm.model.lm_head is 33 x 16, but its number of weights must be a multiple"):
        apply_transforms(tiny_model(vocab_size=33), [QLORA])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"QLora needs peft .*: pip install 'asvr\[lora\]'"):
        apply_transforms(tiny_model(), [QLORA])
