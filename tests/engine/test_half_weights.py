"""bfloat16 weights train as float32 ones do: the optimiser keeps the bits that they lack."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from asvr.engine.half_weights import SplitAdamW, join, split
from asvr.engine.optim import AutocastOptimWrapper

SETTINGS = dict(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)


@given(st.lists(st.floats(min_value=-(2.0**120), max_value=2.0**120, width=32, allow_subnormal=False)))
def test_a_float32_is_its_halves(values):
    weight = torch.tensor(values, dtype=torch.float32)
    upper, lower = split(weight)
    assert upper.dtype == torch.bfloat16 and lower.dtype == torch.int16
    assert torch.equal(join(upper, lower).view(torch.int32), weight.view(torch.int32))
    distance, nearest = (weight - upper.float()).abs(), (weight - weight.bfloat16().float()).abs()
    assert torch.equal(distance, nearest)


def layer(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(7, 5).bfloat16().to(dtype)  # both begin with the same values


def gradients(step: int, micro: int) -> list:
    generator = torch.Generator().manual_seed(10 * step + micro)
    return [torch.randn(shape, generator=generator).bfloat16() for shape in ((5, 7), (5,))]


def accumulate(own: nn.Linear, step: int) -> None:
    """Two micro-batches, as the backward pass brings them."""
    for micro in range(2):
        loss = sum((p * g.to(p.dtype)).sum() for p, g in zip(own.parameters(), gradients(step, micro), strict=True))
        loss.backward()


@pytest.mark.parametrize("clip_grad", [None, 0.5])
def test_steps_are_those_of_float32_weights(clip_grad):
    half, whole = layer(torch.bfloat16), layer(torch.float32)
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


def test_small_steps_are_not_lost():
    """The last bit of a bfloat16 near 1 is 2^-7; steps of 1e-4 would all be rounded away."""
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = SplitAdamW([weight], lr=1e-4, weight_decay=0.0)
    for _ in range(100):
        weight.sum().backward()
        optimizer.step()
    assert join(weight.detach(), optimizer.state[weight]["lower"]) == pytest.approx(np.full(3, 0.99), abs=1e-4)
    assert (weight < 1).all()


def test_other_halves_are_refused():
    with pytest.raises(ValueError, match="trained weights are torch.float16: set dtype='bfloat16' or 'float32'"):
        SplitAdamW([nn.Parameter(torch.ones(2, dtype=torch.float16))], lr=1.0)
