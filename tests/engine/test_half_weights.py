"""bfloat16 weights train as float32 ones do: the optimiser keeps the bits that they lack."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from asvr.engine.half_weights import SplitAdamW, join, round_stochastically, split
from asvr.engine.optim import AutocastOptimWrapper
from asvr.recipe.training import check_optim

SETTINGS = dict(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ON_BOTH = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])])


@given(st.lists(st.floats(min_value=-(2.0**120), max_value=2.0**120, width=32, allow_subnormal=False)))
def test_a_float32_is_its_halves(values):
    weight = torch.tensor(values, dtype=torch.float32)
    upper, lower = split(weight)
    assert upper.dtype == torch.bfloat16 and lower.dtype == torch.int16
    assert torch.equal(join(upper, lower).view(torch.int32), weight.view(torch.int32))
    distance, nearest = (weight - upper.float()).abs(), (weight - weight.bfloat16().float()).abs()
    assert torch.equal(distance, nearest)


def layer(dtype: torch.dtype, device: str) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(7, 5).bfloat16().to(device, dtype)  # both begin with the same values


def gradients(step: int, micro: int) -> list:
    generator = torch.Generator().manual_seed(10 * step + micro)
    return [torch.randn(shape, generator=generator).bfloat16() for shape in ((5, 7), (5,))]


def accumulate(own: nn.Linear, step: int) -> None:
    """Two micro-batches, as the backward pass brings them."""
    for micro in range(2):
        loss = sum((p * g.to(p)).sum() for p, g in zip(own.parameters(), gradients(step, micro), strict=True))
        loss.backward()


@ON_BOTH
@pytest.mark.parametrize("clip_grad", [None, 0.5])
def test_steps_are_those_of_float32_weights(clip_grad, device):
    half, whole = layer(torch.bfloat16, device), layer(torch.float32, device)
    optimizers = SplitAdamW(list(half.parameters()), **SETTINGS), torch.optim.AdamW(whole.parameters(), **SETTINGS)
    wrappers = [AutocastOptimWrapper(one, precision="float32", clip_grad=clip_grad) for one in optimizers]
    for step in range(6):
        for own, wrapper in zip((half, whole), wrappers, strict=True):
            accumulate(own, step)
            wrapper.step()
            wrapper.zero_grad()
        torch.testing.assert_close(wrappers[0].grad_norm, wrappers[1].grad_norm)
        if step == 2:  # as a resumed run does
            optimizers[0].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for own, other in zip(half.parameters(), whole.parameters(), strict=True):
        assert own.dtype == torch.bfloat16 and own.grad is None
        restored = join(own.detach(), optimizers[0].state[own]["lower"])
        torch.testing.assert_close(restored, other.detach(), rtol=1e-6, atol=1e-7)
        assert torch.equal(own.detach(), split(restored)[0])


@ON_BOTH
def test_small_steps_are_not_lost(device):
    """The last bit of a bfloat16 near 1 is 2^-7; steps of 1e-4 would all be rounded away."""
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16, device=device))
    optimizer = SplitAdamW([weight], lr=1e-4, weight_decay=0.0)
    for _ in range(100):
        weight.sum().backward()
        optimizer.step()
    restored = join(weight.detach(), optimizer.state[weight]["lower"]).cpu()
    assert restored == pytest.approx(np.full(3, 0.99), abs=1e-4)
    assert (weight < 1).all()


def test_numbers_are_rounded_at_random_to_their_neighbours_and_are_exact_on_average():
    generator = torch.Generator().manual_seed(0)
    value = torch.tensor([1.0 + 2**-9, 3e-7, 0.0, 1.5]).repeat(4000, 1)
    rounded = round_stochastically(value, generator).float()
    torch.testing.assert_close(rounded.mean(0), value[0], rtol=2e-4, atol=0)
    below = value[0].view(torch.int32) & -(2**16)
    low, high = below.view(torch.float32), (below + 2**16).view(torch.float32)
    assert ((rounded == low) | (rounded == high)).all()
    exact = torch.randn(1000).bfloat16()
    assert torch.equal(round_stochastically(exact.float(), generator), exact)


def average_of_squares(moments: str, device: str, steps: int = 1000) -> torch.Tensor:
    """After gradients of 1, it is 1 - 0.999^steps."""
    weight = nn.Parameter(torch.zeros(2000, device=device))
    optimizer = SplitAdamW([weight], lr=0.0, weight_decay=0.0, betas=(0.9, 0.999), moments=moments)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    return optimizer.state[weight]["exp_avg_sq"].float().cpu()


@ON_BOTH
def test_an_average_that_is_rounded_at_random_does_not_get_stuck(device):
    """If each update is rounded to the nearest bfloat16, the average stops where updates are below half a last bit."""
    exact, stuck = 1 - 0.999**1000, torch.zeros((), dtype=torch.bfloat16)
    for _ in range(1000):
        stuck = (stuck.float() * 0.999 + 0.001).bfloat16()
    assert stuck < 0.6 * exact
    torch.testing.assert_close(average_of_squares("float32", device), torch.full((2000,), exact), rtol=1e-4, atol=0)
    found = average_of_squares("bfloat16", device)
    assert found.mean().item() == pytest.approx(exact, rel=2e-3) and found.std() < 0.05 * exact


@ON_BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_in_bfloat16_train_nearly_the_same(dtype, device):
    """Either dtype of weights; a skipped step changes no bit; a resumed run is the same, bit for bit."""
    layers = [layer(one, device) for one in (dtype, dtype, torch.float32)]
    kinds = [dict(moments="bfloat16"), dict(moments="bfloat16"), {}]
    own, again, exact = (
        SplitAdamW(list(one.parameters()), **SETTINGS, **kind) for one, kind in zip(layers, kinds, strict=True)
    )
    random_state = torch.cuda.get_rng_state if device == "cuda" else torch.get_rng_state
    before = random_state()
    for step in range(8):
        for one, optimizer in zip(layers, (own, again, exact), strict=True):
            accumulate(one, step)
            optimizer.found_inf = torch.tensor(float(step == 4), device=device)
            kept = copy.deepcopy(optimizer.state_dict()["state"])
            optimizer.step()
            if step == 4:
                assert same(kept, optimizer.state_dict()["state"])
            optimizer.zero_grad()
        if step == 2:  # what the resumed run has of its own must not matter
            fresh = SplitAdamW(list(layers[1].parameters()), **SETTINGS, moments="bfloat16")
            saved, again = copy.deepcopy(again.state_dict()), fresh
            again.load_state_dict(saved)
    assert torch.equal(before, random_state())
    assert same(own.state_dict()["state"], again.state_dict()["state"])
    for first, second, other in zip(*(one.parameters() for one in layers), strict=True):
        assert torch.equal(first, second)
        state = own.state[first]
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16
        restored = join(first.detach(), state["lower"]) if dtype == torch.bfloat16 else first.detach()
        torch.testing.assert_close(restored, other.detach(), rtol=0, atol=0.02 * 8 * SETTINGS["lr"])


def same(own: dict, other: dict) -> bool:
    return all(torch.equal(value, other[name][key]) for name, state in own.items() for key, value in state.items())


def test_moments_of_another_dtype_are_refused():
    with pytest.raises(ValueError, match="optim.moments='float16': expected 'float32' or 'bfloat16'"):
        SplitAdamW([nn.Parameter(torch.ones(2))], lr=1.0, moments="float16")
    (problem,) = check_optim(dict(type="AdamW", lr=1e-3, clip_grad=None, precision="bf16", moments="int8"))
    assert problem == "optim.moments='int8': expected one of 'float32', 'bfloat16'"


def test_other_halves_are_refused():
    with pytest.raises(ValueError, match="trained weights are torch.float16: set dtype='bfloat16' or 'float32'"):
        SplitAdamW([nn.Parameter(torch.ones(2, dtype=torch.float16))], lr=1.0)
