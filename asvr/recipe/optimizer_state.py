"""Measures the state that an optimiser keeps for each weight, by one step on small weights."""

import logging
from collections import Counter
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from asvr.base.log_once import log_once
from asvr.models.parameter_groups import IN_BLOCK, parameter_groups
from asvr.registry import OPTIMIZERS

# Fields of ``optim`` that are no arguments of an optimiser. (Each parameter group has its own ``weight_decay``.)
_READ_ELSEWHERE = ("type", "weight_decay", "clip_grad", "precision", "lr_scale", "groups")
ADAM_MOMENTS = 2  # assumed if the optimiser cannot be measured
SIDE = 256  # of a test matrix: large enough that a state's fixed part does not count


def constructor_arguments(optim: dict) -> dict:
    """The arguments of the optimiser's class, without the parameters to train."""
    own = {key: value for key, value in optim.items() if key not in _READ_ELSEWHERE}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}


def state_bytes(model: nn.Module, optim: dict) -> int:
    """The bytes of the optimiser's state for a model's trained weights, after its first step.

    The optimiser of ``optim`` is tried on small float32 weights: matrices and vectors, inside and outside blocks. If
    that fails, two float32 moments a weight are assumed, and a warning says so.
    """
    name = optim.get("type", "AdamW")
    cls, config = OPTIMIZERS.get(name), dict(dict(lr=1e-3), **optim)
    split = getattr(cls, "split_blocks", False)
    weights = Counter()
    for group in parameter_groups(model, config, split_blocks=split):
        for parameter in group["params"]:
            weights[group.get(IN_BLOCK, False), parameter.ndim > 1] += parameter.numel()
    try:
        kept = _bytes_by_kind(cls, config, split)
    except Exception as error:  # a user's own class, which may raise anything
        log_once(logging.WARNING, "memory plan: optim.type=%r is assumed to keep two moments (%s)", name, error)
        kept = dict.fromkeys(weights, ADAM_MOMENTS * torch.float32.itemsize)
    return round(sum(count * kept[kind] for kind, count in weights.items()))


def _bytes_by_kind(cls, config: dict, split: bool) -> dict[tuple[bool, bool], float]:
    """Bytes for each weight. The key says whether the weight is in a block, and whether it is in a matrix."""
    shapes = {(True, True): (SIDE, SIDE), (False, True): (SIDE, SIDE), (False, False): (SIDE,)}
    tried = {kind: nn.Parameter(torch.zeros(shape, device="cpu")) for kind, shape in shapes.items()}
    groups = []
    for kind, parameter in tried.items():
        parameter.grad = torch.ones_like(parameter)
        mark = {IN_BLOCK: kind[0]} if split else {}
        groups.append(dict(params=[parameter], lr=config["lr"], weight_decay=0.0, **mark))
    optimizer = cls(groups, **constructor_arguments(config))
    compiles = not cls.__module__.startswith(("torch.", "asvr."))  # torchao compiles its steps: minutes on a CPU
    with torch.compiler.set_stance("force_eager") if compiles else nullcontext():
        optimizer.step()
    return {kind: sum(map(_nbytes, optimizer.state[p].values())) / p.numel() for kind, p in tried.items()}


def _nbytes(value) -> int:
    """The bytes of a tensor, with all tensors inside it. A single number, such as a count of steps, counts as 0."""
    if not isinstance(value, Tensor) or value.numel() == 1:
        return 0
    if hasattr(value, "__tensor_flatten__"):
        return sum(_nbytes(getattr(value, name)) for name in value.__tensor_flatten__()[0])
    return value.numel() * value.element_size()
