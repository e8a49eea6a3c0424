"""Optimiser, schedule, clipping and mixed precision."""

import copy

import pytest
import torch
from engine_helpers import collate, item, tiny_model
from PIL import Image
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from asvr.engine.optim import build_optim_wrapper
from asvr.engine.schedules import build_schedulers

CONFIG = dict(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.1, clip_grad=1.0, precision="float32")
STEPS = 200


def wrapper(model=None, **changes):
    return build_optim_wrapper(model or tiny_model(), CONFIG | changes)


def rates(optim_wrapper, schedulers, steps: int) -> list[float]:
    """The learning rate that each step is made with."""
    found = []
    for _ in range(steps):
        found.append(optim_wrapper.optimizer.param_groups[0]["lr"])
        optim_wrapper.optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return found


def reference(warmup: int) -> list[float]:
    """Of the schedule that LLaVA trains with."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, STEPS)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("ratio, warmup", [(0.03, 6), (0.1, 20), (0.0, 0)])
def test_schedule_is_llavas_cosine_with_warmup(ratio, warmup):
    optim_wrapper = wrapper()
    found = rates(optim_wrapper, build_schedulers(optim_wrapper, dict(warmup_ratio=ratio), STEPS), STEPS)
    expected = reference(warmup)
    # LLaVA's first step has a rate of zero and so does nothing; here the same rise begins above zero.
    assert found[warmup:] == pytest.approx(expected[warmup:], abs=1e-8)
    assert found[:warmup] == pytest.approx([1e-3 * (step + 1) / (warmup + 1) for step in range(warmup)])
    assert found[:warmup] == pytest.approx(expected[:warmup], abs=1e-3 / (warmup + 1))
    assert max(found) == pytest.approx(1e-3)


def test_schedule_ends_at_its_floor():
    optim_wrapper = wrapper()
    schedulers = build_schedulers(optim_wrapper, dict(warmup_ratio=0.1, min_lr_ratio=0.2), STEPS)
    assert rates(optim_wrapper, schedulers, STEPS)[-1] == pytest.approx(2e-4, rel=1e-3)


def rates_of(steps: int, **config) -> list[float]:
    optim_wrapper = wrapper()
    return rates(optim_wrapper, build_schedulers(optim_wrapper, config, steps), steps)


def test_presets():
    warmup = [0.25e-3, 0.5e-3, 0.75e-3]
    assert rates_of(10, preset="constant", warmup_ratio=0.3) == pytest.approx(warmup + [1e-3] * 7)
    assert rates_of(8, preset="linear", warmup_ratio=3 / 8) == pytest.approx(warmup + [1e-3, 8e-4, 6e-4, 4e-4, 2e-4])
    falls = [1e-3 * (1 - 0.9 * k / 4) for k in range(4)]
    found = rates_of(10, preset="wsd", warmup_ratio=0.3, decay_ratio=0.4, min_lr_ratio=0.1)
    assert found == pytest.approx(warmup + [1e-3] * 3 + falls)
    assert rates_of(2, preset="linear", warmup_ratio=0.0) == pytest.approx([1e-3, 0.5e-3])
    assert rates_of(1, preset="wsd", warmup_ratio=0.0, decay_ratio=0.1) == [1e-3]


def test_a_preset_is_what_its_schedulers_are():
    line = dict(type="LinearLR", start_factor=1.0, end_factor=0.2, begin=0.5, end=11)
    composed = [dict(type="LinearLR", start_factor=0.25, end=4), line]
    preset = dict(preset="wsd", warmup_ratio=0.3, decay_ratio=0.5, min_lr_ratio=0.2)
    assert rates_of(10, param_schedulers=composed) == rates_of(10, **preset)
    cosine = dict(type="CosineAnnealingLR", begin=0.0, T_max=1.0, eta_min_ratio=0.1)
    assert rates_of(10, param_schedulers=[cosine]) == rates_of(10, warmup_ratio=0.0, min_lr_ratio=0.1)


def test_lengths_are_parts_of_the_steps_or_steps():
    entry = dict(type="MultiStepLR", gamma=0.1)
    for milestones in ([0.3, 0.5], [3, 5], [0.3, 5]):
        found = rates_of(10, param_schedulers=[dict(entry, milestones=milestones)])
        assert found == pytest.approx([1e-3] * 3 + [1e-4] * 2 + [1e-5] * 5)


def test_what_mmengine_refuses_names_the_field():
    with pytest.raises(ValueError, match="schedule.param_schedulers, with 10 steps: .*factor should between 0 and 1"):
        rates_of(10, param_schedulers=[dict(type="LinearLR", start_factor=2.0)])


@pytest.mark.parametrize("at", [3, 20, 90])
def test_schedule_goes_on_from_its_state(at):
    config = dict(warmup_ratio=0.1)
    first = wrapper()
    schedulers = build_schedulers(first, config, STEPS)
    whole = rates(first, schedulers, at)
    states = [first.optimizer.state_dict(), *[scheduler.state_dict() for scheduler in schedulers]]
    whole += rates(first, schedulers, STEPS - at)

    second = wrapper()
    schedulers = build_schedulers(second, config, STEPS)
    second.optimizer.load_state_dict(states[0])
    for scheduler, state in zip(schedulers, states[1:], strict=True):
        scheduler.load_state_dict(state)
    assert rates(second, schedulers, STEPS - at) == whole[at:]


def test_frozen_parameters_are_not_in_the_optimiser():
    model = tiny_model(train=["projector", "heads"])
    held = {id(p) for group in wrapper(model).optimizer.param_groups for p in group["params"]}
    wanted = {id(p) for part in (model.projector, model.heads) for p in part.parameters() if p.requires_grad}
    assert held == wanted and wanted


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        wrapper(tiny_model(train=["heads"], reconstruction=[]))


def test_only_matrices_decay_and_each_parameter_stands_once():
    optimizer = wrapper().optimizer
    members = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(members) == len(set(members))
    for group in optimizer.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] > 0}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}


def test_lr_scale_multiplies_a_components_rate_along_the_schedule():
    model = tiny_model()
    optim_wrapper = wrapper(model, lr_scale=dict(heads=3.0))
    schedulers = build_schedulers(optim_wrapper, dict(warmup_ratio=0.1), STEPS)
    heads = {id(p) for p in model.heads.parameters()}
    for steps in (0, 5, 60):
        rates(optim_wrapper, schedulers, steps)
        scaled = {group["lr"] for group in optim_wrapper.optimizer.param_groups if id(group["params"][0]) in heads}
        plain = {group["lr"] for group in optim_wrapper.optimizer.param_groups if id(group["params"][0]) not in heads}
        assert len(scaled) == len(plain) == 1
        assert scaled.pop() == pytest.approx(3 * plain.pop())


@pytest.mark.parametrize("limit", [None, 1e-2, 1e6])
def test_gradients_are_clipped_to_the_limit(limit):
    model = tiny_model()
    optim_wrapper = wrapper(model, clip_grad=limit)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.grad = torch.ones_like(parameter)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    optim_wrapper.step()
    assert optim_wrapper.grad_norm.item() == pytest.approx(count**0.5)  # before clipping
    after = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item()
    assert after == pytest.approx(min(count**0.5, limit or float("inf")), rel=1e-3)


@pytest.mark.parametrize("precision, expected", [("bf16", torch.bfloat16), ("float32", torch.float32)])
def test_autocast_decides_the_precision_of_the_matrix_products(precision, expected):
    model = tiny_model()
    seen = []
    model.llm.model.model.layers[0].mlp.up_proj.register_forward_hook(lambda m, a, out: seen.append(out.dtype))
    batch = collate(model)([item(image=Image.new("RGB", (8, 8), "red"))])
    optim_wrapper = wrapper(model, precision=precision)
    before = model.projector.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    logs = model.train_step([batch], optim_wrapper)
    assert set(seen) == {expected}
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # the weights themselves stay
    assert logs["text"].dtype == torch.float32 and logs["text"].isfinite()
    assert any(not torch.equal(before[key], value) for key, value in model.projector.state_dict().items())


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=r"optim.precision='fp16': expected one of \['bf16', 'float32'\]"):
        wrapper(precision="fp16")


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("clip_grad", [None, 1.0])
@pytest.mark.parametrize("half", [False, True])
def test_a_step_that_is_not_finite_changes_nothing_and_the_next_is_as_if_it_had_not_been(half, clip_grad, poison):
    def run(poisoned: bool) -> tuple:
        model = tiny_model()
        model.llm.to(torch.bfloat16 if half else torch.float32)
        optim_wrapper = wrapper(model, clip_grad=clip_grad)
        batch, skipped = collate(model)([item(image=Image.new("RGB", (8, 8), "red"))]), []
        for step in range(4):
            if step == 2:
                if not poisoned:
                    continue
                before = copy.deepcopy([model.state_dict(), optim_wrapper.optimizer.state_dict()])
                (model.projector.mlp[0].bias.sum() * poison).backward()
            model.train_step([batch], optim_wrapper)
            skipped.append(optim_wrapper.skipped.item())
            if step == 2:
                torch.testing.assert_close(
                    [model.state_dict(), optim_wrapper.optimizer.state_dict()], before, rtol=0, atol=0
                )
        return model.state_dict(), optim_wrapper.optimizer.state_dict(), skipped

    whole, other = run(False), run(True)
    assert whole[2] == [False] * 3 and other[2] == [False, False, True, False]
    torch.testing.assert_close(other[:2], whole[:2], rtol=0, atol=0)


def test_a_loss_that_is_not_finite_is_enough():
    model = tiny_model()
    optim_wrapper = wrapper(model)
    weight = model.projector.mlp[0].bias
    before = weight.detach().clone()
    for loss in (weight.sum(), weight.sum() + float("inf")):  # whose gradient is finite
        optim_wrapper.backward(loss)
    optim_wrapper.step()
    assert optim_wrapper.skipped.item() and optim_wrapper.grad_norm.isfinite() and torch.equal(before, weight)
    optim_wrapper.zero_grad()
    optim_wrapper.backward(weight.sum())
    optim_wrapper.step()
    assert not optim_wrapper.skipped.item() and not torch.equal(before, weight)
