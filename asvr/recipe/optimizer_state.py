"""What an optimiser keeps for each weight, found by a step on small ones."""

import logging
from collections import Counter
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from asvr.base.log_once import log_once
from asvr.models.parameter_groups import IN_BLOCK, parameter_groups
from asvr.registry import OPTIMIZERS

# Of ``optim``, what others read: it is no argument of an optimiser. (Its ``weight_decay`` is each group's own.)
_READ_ELSEWHERE = ("type", "weight_decay", "clip_grad", "precision", "lr_scale", "groups")
ADAM_MOMENTS = 2  # taken where an optimiser does not tell
SIDE = 256  # of a matrix to try: what a state has beside a number a weight does not count then


def constructor_arguments(optim: dict) -> dict:
    """Arguments of the optimiser's class besides its parameters."""
    own = {key: value for key, value in optim.items() if key not in _READ_ELSEWHERE}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}


def state_bytes(model: nn.Module, optim: dict) -> int:
    """Bytes of the state that the optimiser of ``optim`` keeps of a model's trained weights, once it has made a step.

    Its class is tried on small float32 weights: matrices and vectors, in blocks and outside. Where it fails there, two
    float32 moments are counted, and a warning says so.
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
        log_once(logging.WARNING, "memory plan: optim.type=%r is taken to keep two moments (%s)", name, error)
        kept = dict.fromkeys(weights, ADAM_MOMENTS * torch.float32.itemsize)
    return round(sum(count * kept[kind] for kind, count in weights.items()))


def _bytes_by_kind(cls, config: dict, split: bool) -> dict[tuple[bool, bool], float]:
    """Bytes a weight, by whether it is in a block, and in a matrix."""
    shapes = {(True, True): (SIDE, SIDE), (False, True): (SIDE, SIDE), (False, False): (SIDE,)}
    tried = {kind: nn.Parameter(torch.zeros(shape, device="cpu")) for kind, shape in shapes.items()}
    groups = []
    for kind, parameter in tried.items():
        parameter.grad = torch.ones_like(parameter)
        mark = {IN_BLOCK: kind[0]} if split else {}
        groups.append(dict(params=[parameter], lr=config["lr"], weight_decay=0.0, **mark))
    optimizer = cls(groups, **constructor_arguments(config))
    compiles = not cls.__module__.startswith(("torch.", "asvr."))  # torchao's steps do, for minutes on a CPU
    with torch.compiler.set_stance("force_eager") if compiles else nullcontext():
        optimizer.step()
    return {kind: sum(map(_nbytes, optimizer.state[p].values())) / p.numel() for kind, p in tried.items()}


def _nbytes(value) -> int:
    """Of a tensor, with those that it is made of. A single number, such as a count of steps, is none of a weight."""
    if not isinstance(value, Tensor) or value.numel() == 1:
        return 0
    if hasattr(value, "__tensor_flatten__"):
        return sum(_nbytes(getattr(value, name)) for name in value.__tensor_flatten__()[0])
    return value.numel() * value.element_size()
