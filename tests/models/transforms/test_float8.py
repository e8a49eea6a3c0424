"""Products in 8-bit floating point: rounded as they should be, with the weights left alone."""

import sys

import pytest
import torch
import torch.nn.functional as F
from engine_helpers import collate, item, tiny_model
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from asvr.engine.saved import saved_tensors
from asvr.flops.count import Sample, forward_parts
from asvr.models.checkpointing import is_product
from asvr.models.losses import linear_cross_entropy
from asvr.models.transforms import (
    apply_transforms,
    before_sharding,
    merge_transforms,
    require_device,
    require_parallel,
    without_transforms,
)

pytest.importorskip("torchao.float8", reason="torchao is not installed")
RECIPES = ("rowwise", "tensorwise", "rowwise_with_gw_hp")
FLOAT8 = dict(type="Float8", layers=["llm.*.layers", "llm.*.lm_head"], emulate=True)


def losses(model) -> dict[str, float]:
    batch = collate(model)([item(image=Image.new("RGB", (8, 8), "red")), item()])
    return {key: value.sum().item() for key, value in model.eval()(batch).items() if "_" not in key}


def changed(**settings) -> nn.Module:
    model = tiny_model()
    apply_transforms(model, [FLOAT8 | settings])
    return model


@pytest.mark.parametrize("recipe", RECIPES)
def test_products_are_rounded_and_weights_are_not(recipe):
    plain, model = tiny_model(), changed(recipe=recipe)
    expected, found = losses(plain), losses(model)
    assert found != expected and found == pytest.approx(expected, rel=0.05)
    assert {type(layer).__name__ for layer in model.llm.modules() if isinstance(layer, nn.Linear)} == {"Float8Linear"}
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=0)


def trained(model: nn.Module, steps: int = 24) -> list[float]:
    """The loss of each step."""
    batch = collate(model)([item(image=Image.new("RGB", (8, 8), "red")), item(words=7), item(words=3)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    found = []
    for _ in range(steps):
        loss = model(batch, model.count_targets([batch]))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("settings", [*(dict(recipe=name) for name in RECIPES), dict(fsdp_float8_all_gather=True)])
def test_losses_fall_as_they_do_in_full_precision(settings):
    """Within 2 % in each of 24 steps, in which the loss falls by more than a third."""
    full, own = trained(tiny_model()), trained(changed(**settings))
    assert own != full and own == pytest.approx(full, rel=0.02)
    assert own[-1] < 2 / 3 * own[0]


def test_merged_is_the_model_without_it():
    plain, model = tiny_model(), changed()
    weights = dict(model.named_parameters())
    merge_transforms(model)
    assert losses(model) == losses(plain)
    assert {type(layer) for layer in model.llm.modules() if isinstance(layer, nn.Linear)} == {nn.Linear}
    assert all(parameter is weights[key] for key, parameter in model.named_parameters())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_model_that_answers_has_plain_layers(recipe):
    """Under Lora too, whose layers go around them. Only training multiplies in 8 bits."""
    pytest.importorskip("peft", reason="peft is not installed")
    plain, model = tiny_model(), changed(recipe=recipe)
    apply_transforms(model, [dict(type="Lora", layers=["llm.*.self_attn"], r=2)])
    before = losses(model)
    with without_transforms(model), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = losses(model)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert found == losses(plain)
    assert losses(model) == before != losses(plain)


def test_weights_that_stand_in_a_file_still_do():
    model = tiny_model(train=["projector"])
    model.llm.source = "a/llm"
    apply_transforms(model, [FLOAT8])
    assert model.llm.apart == frozenset() and saved_tensors(model.llm) == {}
    merge_transforms(model)
    assert model.llm.source == "a/llm"


def test_the_loss_goes_through_the_layer():
    """It would be that of a plain layer if it read the weight."""
    model = changed()
    hidden, target = torch.randn(6, 16), torch.arange(6)
    loss, _ = linear_cross_entropy(hidden, model.llm.lm_head, target)
    expected = F.cross_entropy(model.llm.lm_head(hidden), target, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    plain = F.cross_entropy(F.linear(hidden, model.llm.lm_head.weight), target, reduction="sum")
    assert abs(loss - plain) > 1e-4


def test_every_weight_gets_a_gradient_in_float32_under_autocast():
    model = changed().train()
    batch = collate(model)([item(image=Image.new("RGB", (8, 8), "red"))])
    with torch.autocast("cpu", torch.bfloat16):
        model(batch, model.count_targets([batch]))["loss"].backward()
    for layer in model.llm.modules():
        if isinstance(layer, nn.Linear):
            assert layer.weight.grad.dtype == torch.float32 and layer.weight.grad.abs().max() > 0


def test_selective_checkpointing_keeps_such_products():
    seen = []

    class Ops(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append((func.name(), is_product(func)))
            return func(*args, **(kwargs or {}))

    model = tiny_model()
    apply_transforms(model, [FLOAT8 | dict(layers=["llm.*.q_proj"], emulate=False)])
    (layer,) = (layer for layer in model.llm.modules() if type(layer).__name__ == "Float8Linear")
    with torch.device("meta"), Ops():
        layer.to("meta")(torch.empty(3, 16))
    assert [name for name, product in seen if product] == ["aten::mm"]


def test_adapters_go_around_such_layers():
    pytest.importorskip("peft", reason="peft is not installed")
    model, plain = tiny_model(), tiny_model()
    apply_transforms(model, [FLOAT8, dict(type="Lora", layers=["llm.*.self_attn"], r=2)])
    assert losses(model) == pytest.approx(losses(plain), rel=0.05)
    merge_transforms(model)
    assert losses(model) == losses(plain)


@pytest.mark.parametrize("emulate", [True, False])
def test_a_dry_run_counts_what_it_counts_without(emulate):
    plain, model = tiny_model().to("meta"), tiny_model()
    layers = ["llm.*.self_attn"]  # 16 x 16
    apply_transforms(model, [FLOAT8 | dict(layers=layers, emulate=emulate)])
    assert forward_parts(model.to("meta"), Sample()) == forward_parts(plain, Sample())


def test_what_cannot_be_done_is_one_line(monkeypatch):
    cpu = torch.device("cpu")
    require_device([FLOAT8, dict(type="Lora", layers=["llm"])], cpu)
    with pytest.raises(ValueError, match="recipe='rowwise' needs a CUDA device of capability 9.0 or higher, .* is cpu"):
        require_device([FLOAT8 | dict(emulate=False)], cpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    require_device([FLOAT8 | dict(emulate=False, recipe="tensorwise")], torch.device("cuda"))
    with pytest.raises(ValueError, match="runtime.device is cuda: leave it out, or set emulate=True"):
        require_device([FLOAT8 | dict(emulate=False)], torch.device("cuda"))
    with pytest.raises(ValueError, match="llm.model.model.layers.0.mlp.gate_proj is 24 x 16, but both sizes must be"):
        changed(emulate=False, layers=["llm.*.mlp"])
    with pytest.raises(ValueError, match=r"Float8: layers='llm.\*.self_atn' matches no linear layer; did you mean"):
        changed(layers=["llm.*.self_atn"])
    with pytest.raises(ValueError, match="recipe='columnwise': expected one of rowwise, tensorwise"):
        changed(recipe="columnwise")
    gathered = FLOAT8 | dict(fsdp_float8_all_gather=True)
    require_parallel([gathered, dict(type="Lora", layers=["llm"])], "FSDP2")
    require_parallel([FLOAT8], None)
    for kind, found in ((None, "`parallel` is not set"), ("DDP", "parallel.type='DDP'")):
        with pytest.raises(ValueError, match=f"=True needs parallel.type='FSDP2', but {found}: leave"):
            require_parallel([gathered], kind)
    with pytest.raises(ValueError, match=r"gathers layers of the LLM's blocks, and layers=\['llm.\*.lm_head'\] names"):
        changed(fsdp_float8_all_gather=True, layers=["llm.*.lm_head"])
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ValueError, match="Float8 needs torchao .*: pip install torchao"):
        changed()


def test_weights_that_cannot_be_gathered_in_8_bits_are_refused():
    model = changed(fsdp_float8_all_gather=True, recipe="tensorwise")
    with pytest.raises(ValueError, match=r"rows can be shared evenly, but one has \d+ rows for 7 shards"):
        before_sharding(model, [], 7)
    model.compute_device = torch.device("cpu")
    with pytest.raises(ValueError, match="does not work with parallel.cpu_offload"):
        before_sharding(model, [], 2)
