"""Optimisers by name, their groups, and steps that are skipped."""

import copy

import pytest
import torch
from engine_helpers import TARGET, collate, item, tiny_model
from PIL import Image
from torch import nn

from asvr.engine.optim import build_optim_wrapper
from asvr.engine.optimizers import Muon
from asvr.models.parameter_groups import layer_factors, parameter_groups

CONFIG = dict(lr=1e-3, weight_decay=0.1, clip_grad=1.0, precision="float32")
NAMES = ["SGD", "Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD", "TorchAdafactor"]
ON_DEVICE = {"AdamW", "torch.optim.AdamW", "Adam", "SGD"}


def wrapper(model=None, **changes):
    return build_optim_wrapper(model or tiny_model(), CONFIG | changes)


def trained(kind: str, steps: str, **settings) -> tuple[nn.Module, list, list[bool]]:
    """steps: ``g`` for a good one, ``b`` for one with a loss that is not finite."""
    model = tiny_model()
    optim_wrapper, skipped = wrapper(model, type=kind, **settings), []
    batch = collate(model)([item(image=Image.new("RGB", (8, 8), "red"))])
    for step in steps:
        if step == "b":
            (model.projector.mlp[0].bias.sum() * float("nan")).backward()
        model.train_step([batch], optim_wrapper)
        skipped.append(optim_wrapper.skipped.item())
    return model, optim_wrapper.optimizer.state_dict(), skipped


@pytest.mark.parametrize("kind", [*NAMES, "AdamW", "torch.optim.AdamW", "Muon"])
@pytest.mark.parametrize("steps", ["gbgg", "bggg"])  # the first step makes the state of some optimisers
def test_a_step_that_is_not_finite_is_skipped_by_every_optimiser(kind, steps):
    model, state, skipped = trained(kind, steps)
    other, expected, _ = trained(kind, "ggg")
    assert skipped == [step == "b" for step in steps]
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(state["state"], expected["state"], rtol=0, atol=0)


@pytest.mark.parametrize("kind", [*NAMES, "AdamW", "torch.optim.AdamW", "Muon"])
def test_who_can_skips_on_the_device(kind, monkeypatch):
    """The others ask for one number a step."""
    model, asked = tiny_model(), []
    optim_wrapper = wrapper(model, type=kind)
    batch = collate(model)([item(words=3)])
    look = torch.Tensor.item
    monkeypatch.setattr(
        torch.Tensor, "item", lambda self: (self.dtype == torch.bool and asked.append(self)) or look(self)
    )
    model.train_step([batch], optim_wrapper)
    assert len(asked) == (0 if kind in ON_DEVICE else 1)


def test_momentum_of_sgd_is_right_behind_a_skipped_first_step():
    model, state, _ = trained("SGD", "bggg", momentum=0.9, fused=True)
    other, expected, _ = trained("SGD", "ggg", momentum=0.9, fused=True)
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(state["state"], expected["state"], rtol=0, atol=0)


# Groups ---------------------------------------------------------------------------------------------------


def names(model: nn.Module, parameters) -> set[str]:
    known = {id(p): name for name, p in model.named_parameters()}
    return {known[id(p)] for p in parameters}


def settings_by_name(model: nn.Module, **config) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(model, CONFIG | config)
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in names(model, group["params"])}


def test_a_component_has_a_rate_and_a_decay_of_its_own():
    found = settings_by_name(tiny_model(), groups=dict(heads=dict(lr_scale=3.0, weight_decay=0.5)))
    heads = {name: value for name, value in found.items() if name.startswith("heads.")}
    assert set(heads.values()) == {(3e-3, 0.5), (3e-3, 0.0)}
    assert {value for name, value in found.items() if name not in heads} == {(1e-3, 0.1), (1e-3, 0.0)}


def test_layers_of_the_llm_decay_from_the_back_to_the_front():
    model = tiny_model()
    factors = layer_factors("llm", model.llm, 0.5)
    by_name = {name: factors[p] for name, p in model.llm.model.named_parameters()}
    assert by_name["model.embed_tokens.weight"] == 0.25
    assert {value for name, value in by_name.items() if ".layers.0." in name} == {0.5}
    assert by_name["model.norm.weight"] == by_name["lm_head.weight"] == 1.0
    found = settings_by_name(model, groups=dict(llm=dict(layer_decay=0.5)))
    assert found["llm.model.model.embed_tokens.weight"] == (0.25e-3, 0.1)
    assert found["projector.mlp.0.weight"] == (1e-3, 0.1)


def test_layers_of_a_vision_tower_decay_too():
    model = tiny_model(train=["encoder", "projector"], reconstruction=[])
    factors = layer_factors("encoder", model.encoder, 0.5)
    assert len(model.encoder.blocks) == 1  # the tower's first, behind whose output `layer=-2` stops
    by_name = {name: factors[p] for name, p in model.encoder.model.named_parameters()}
    assert {value for name, value in by_name.items() if "embeddings" in name} == {0.25}
    assert {value for name, value in by_name.items() if ".layers.0." in name} == {0.5}


def test_a_component_without_blocks_has_no_layers():
    with pytest.raises(ValueError, match="optim.groups.encoder.layer_decay: Linear has no `blocks`: leave it out"):
        layer_factors("encoder", nn.Linear(2, 2), 0.5)


# Muon -----------------------------------------------------------------------------------------------------


def test_muon_has_the_matrices_of_blocks_and_adamw_the_rest():
    model = tiny_model(train=["encoder", "projector", "heads", "llm"])
    optimizer = wrapper(model, type="Muon", groups=dict(heads=dict(lr_scale=2.0))).optimizer
    by_muon = names(model, [p for group in optimizer.param_groups if "ns_steps" in group for p in group["params"]])
    by_adamw = names(model, [p for group in optimizer.param_groups if "betas" in group for p in group["params"]])
    assert by_muon | by_adamw == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not by_muon & by_adamw
    assert {name.split(".")[0] for name in by_muon} == {"encoder", "llm", "heads"}
    assert all(model.get_parameter(name).ndim == 2 for name in by_muon)
    assert "llm.model.model.layers.0.mlp.up_proj.weight" in by_muon
    rest = ("embed_tokens", "lm_head", "norm", "classifiers", "projector", "patch_embedding", "position_embedding")
    assert all(any(part in name for name in by_adamw) for part in rest)


def test_a_component_may_leave_muon_alone():
    model = tiny_model(train=["encoder", "heads", "llm"])
    groups = dict(encoder=dict(muon=False), heads=dict(muon=False, lr_scale=2.0))
    optimizer = wrapper(model, type="Muon", groups=groups).optimizer
    by_muon = names(model, [p for group in optimizer.param_groups if "ns_steps" in group for p in group["params"]])
    assert by_muon and {name.split(".")[0] for name in by_muon} == {"llm"}
    rest = [group for group in optimizer.param_groups if "betas" in group]
    assert {group["lr"] for group in rest} == {1e-3, 2e-3}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert by_muon | names(model, [p for group in rest for p in group["params"]]) == trained
    with pytest.raises(ValueError, match="this stage trains none .* or all of them have muon=False"):
        wrapper(model, type="Muon", groups=groups | dict(llm=dict(muon=False)))


def test_muon_computes_what_torchs_muon_and_adamw_compute():
    model, other = tiny_model(), tiny_model()
    settings = dict(lr=1e-3, weight_decay=0.1)
    ours = wrapper(model, type="Muon", momentum=0.9, betas=(0.8, 0.9), adamw_lr_scale=0.5, clip_grad=None)
    groups = parameter_groups(other, CONFIG, split_blocks=True)
    apart = {mark: [g for g in groups if g["in_block"] == mark] for mark in (True, False)}
    muon = torch.optim.Muon(apart[True], momentum=0.9, adjust_lr_fn="match_rms_adamw", **settings)
    for group in apart[False]:
        group["lr"] *= 0.5
    adamw = torch.optim.AdamW(apart[False], betas=(0.8, 0.9), fused=True, **settings)
    batch = collate(model)([item(image=Image.new("RGB", (8, 8), "red"))])
    reference = wrapper(other, clip_grad=None)
    reference.step = lambda: (muon.step(), adamw.step())
    for _ in range(3):
        model.train_step([batch], ours)
        other.train_step([batch], reference)
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_muon_without_a_matrix_is_refused():
    with pytest.raises(
        ValueError, match="optim.type='Muon': it trains the matrices of transformer blocks, and this stage"
    ):
        wrapper(tiny_model(train=["projector"], reconstruction=[]), type="Muon")


def test_a_schedule_of_muon_goes_on_behind_a_loaded_state():
    optimizer = wrapper(tiny_model(), type="Muon").optimizer
    assert isinstance(optimizer, Muon)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    weight = optimizer.param_groups[0]["params"][0]
    before = weight.detach().clone()
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert torch.equal(weight, before) and optimizer.state[weight]["momentum_buffer"].abs().sum() > 0


# What does not fit ----------------------------------------------------------------------------------------


def test_bfloat16_weights_are_adamws_alone():
    model = tiny_model(reconstruction=[TARGET])
    model.llm.to(torch.bfloat16)
    wrapper(model)
    with pytest.raises(
        ValueError, match="optim.type='SGD' trains only float32 weights, and this stage has torch.bfloat16"
    ):
        wrapper(model, type="SGD")


def test_settings_that_torch_refuses_name_the_optimiser():
    with pytest.raises(ValueError, match="optim.type='Adam': `fused` and `foreach` cannot be `True` together"):
        wrapper(type="Adam", fused=True, foreach=True)
    with pytest.raises(ValueError, match="optim.type='SGD': Invalid momentum value: -1"):
        wrapper(type="SGD", momentum=-1.0)
