"""Tells the loss of a target that is a mean from one that is a sum, without the weights of a run.

The library divides each loss by the number of positions in the whole step. So a loss that is a mean already becomes far
too small, and the run looks right.
"""

import copy
import logging
from collections.abc import Iterator
from math import isfinite

import torch
from torch import Tensor, nn

from asvr.base.text import short
from asvr.data.layouts import Layout
from asvr.models.batches import full_batch
from asvr.models.targets import Seen, Target

LARGEST = 3 * 10**9  # weights times positions of a sample: about a second on one core
SAME = 1e-3  # relative difference; the loss of two samples is about twice that of one, so this is far away

logger = logging.getLogger("asvr")


def is_mean(target: Target, model: nn.Module, layout: Layout, truth: dict[str, Tensor]) -> bool:
    """Whether the loss of a sample and that of the same sample twice are equal.

    target: a target of a model on the meta device. truth: its truth for one image of this layout. The loss is computed
    on the CPU, with random weights and numbers; those of training stay as they are. False if it cannot be told: if the
    loss draws numbers itself, is 0 or not finite, raises an error, or is too large to be tried."""
    tokens = layout.num_tokens + 2
    if sum(tensor.numel() for tensor in _tensors(target)) * tokens > LARGEST:
        return False
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            one, again, two = _losses(target, model, layout, truth)
    except Exception as error:  # raised by the user's own code, which may need real weights
        logger.debug("%s: the sum of its loss is not tried: %s", type(target).__name__, short(str(error)))
        return False
    return one == again and one != 0 and isfinite(one) and abs(two - one) <= SAME * abs(one)


def _losses(target: Target, model: nn.Module, layout: Layout, truth: dict[str, Tensor]) -> list[float]:
    """The losses of one sample, of the same sample again, and of a batch that has it twice."""
    target = _with_numbers(target)
    tokens = layout.num_tokens + 2
    hidden = {tap: torch.randn(tokens, model.llm.hidden_size) for tap in target.taps}
    features_INE = torch.randn(layout.num_crops, model.encoder.num_tokens, model.encoder.width)
    own = {name: _random(value) for name, value in truth.items()}
    found = []
    for rows in (1, 1, 2):
        seen = Seen(
            batch=full_batch(model, rows, tokens, layout=layout),
            hidden={tap: torch.cat([states] * rows) for tap, states in hidden.items()},
            features_INE=torch.cat([features_INE] * rows),
            training=True,
        )
        loss, _ = target.loss(seen, {name: torch.cat([value] * rows) for name, value in own.items()})
        found.append(loss.item())
    return found


def _with_numbers(target: Target) -> Target:
    """A copy on the CPU with random weights."""
    target = copy.deepcopy(target)
    for module in _modules(target):
        module.to_empty(device="cpu")
    for tensor in _tensors(target):
        tensor.copy_(0.1 * _random(tensor) if tensor.is_floating_point() else _random(tensor))
    return target


def _modules(target: Target) -> Iterator[nn.Module]:
    return (part for part in (target.head, target.teacher, target.criterion) if isinstance(part, nn.Module))


def _tensors(target: Target) -> Iterator[Tensor]:
    for module in _modules(target):
        yield from (*module.parameters(), *module.buffers())


def _random(like: Tensor) -> Tensor:
    """Numbers of the same shape: normal ones, or zeros for codes, or True."""
    if like.is_floating_point():
        return torch.randn(like.shape, dtype=torch.float32).to(like.dtype)
    return torch.full(like.shape, like.dtype == torch.bool, dtype=like.dtype)
