"""Builds optimisers by name.

A name may be one of the library's own, of torch's, of a user's (registry ``OPTIMIZERS``), or an import path."""

import inspect

import mmengine.optim  # noqa: F401  (registers torch's optimisers)
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from asvr.engine.half_weights import SplitAdamW
from asvr.models.parameter_groups import IN_BLOCK, parameter_groups
from asvr.recipe.optimizer_state import constructor_arguments
from asvr.registry import OPTIMIZERS

__all__ = ["Muon", "SplitAdamW", "build_optimizer"]

# If these are built with fused=True, they skip a step on the device, see `asvr.base.compat.skips_on_device`.
_FUSED = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)


@OPTIMIZERS.register_module()
class Muon(torch.optim.Optimizer):
    """torch's Muon for the matrices of transformer blocks, AdamW for all other parameters.

    The blocks are those of LLM, encoder and heads. The other parameters are embeddings, LM head, classifiers,
    projector, norms and biases.

    params: groups of parameters. Groups with matrices of blocks have ``in_block=True``, see
        `asvr.models.parameter_groups`.
    lr, weight_decay: of both optimisers. With the default ``adjust_lr_fn='match_rms_adamw'`` the updates of both have
        the same size, so that a rate that is good for AdamW is good for both. 'original' needs a higher rate (0.02) and
        an ``adamw_lr_scale`` below 1.
    momentum, nesterov, ns_steps, adjust_lr_fn: of Muon, see ``torch.optim.Muon``. betas, eps: of AdamW.
    adamw_lr_scale: a factor of AdamW's learning rate.
    """

    split_blocks = True  # whether `parameter_groups` puts matrices of blocks into groups of their own

    def __init__(
        self,
        params: list[dict],
        *,
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        adamw_lr_scale: float = 1.0,
    ):
        matrices = [_without_mark(group) for group in params if group[IN_BLOCK]]
        rest = [_without_mark(group) for group in params if not group[IN_BLOCK]]
        if not matrices:
            raise ValueError(
                "it trains the matrices of transformer blocks, and this stage trains none (`train` has no llm, "
                "encoder or heads with `blocks`, or all of them have muon=False): use AdamW in this stage"
            )
        for group in rest:
            group["lr"] = group.get("lr", lr) * adamw_lr_scale
        muon = dict(momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn)
        self._parts = [torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, **muon)]
        if rest:
            adamw = dict(betas=tuple(betas), eps=eps, fused=True)
            self._parts.append(torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay, **adamw))
        common = dict(lr=lr, weight_decay=weight_decay)
        super().__init__([group for part in self._parts for group in part.param_groups], common)
        self._link()

    def _link(self) -> None:
        """Let both parts use the groups and the state of this optimiser."""
        first = 0
        for part in self._parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state, first = self.param_groups[first:last], self.state, last

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None, "training steps have no closure"
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._link()


def _without_mark(group: dict) -> dict:
    return {key: value for key, value in group.items() if key != IN_BLOCK}


def build_optimizer(model: nn.Module, config: dict) -> torch.optim.Optimizer:
    """Build the optimiser of ``optim`` for the trained parameters of ``model``. Raises ``ValueError`` if it cannot."""
    cls = OPTIMIZERS.get(config.get("type", "AdamW"))
    groups = parameter_groups(model, config, split_blocks=getattr(cls, "split_blocks", False))
    if not groups:
        raise ValueError("nothing to train: `train` of this stage names no component with parameters")
    _check_parameters(cls, [parameter for group in groups for parameter in group["params"]])
    arguments = constructor_arguments(config)
    if inspect.isclass(cls) and cls in _FUSED and not arguments.keys() & {"fused", "foreach", "differentiable"}:
        arguments["fused"] = True
    try:
        optimizer = cls(groups, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"optim.type={config.get('type', 'AdamW')!r}: {error}") from error
    if any(isinstance(group["lr"], Tensor) for group in optimizer.param_groups):
        _keep_rates_numbers(optimizer)
    return optimizer


def _check_parameters(cls, parameters: list[nn.Parameter]) -> None:
    half = {p.dtype for p in parameters} - {torch.float32}
    if half and not getattr(cls, "half_precision", False):
        raise ValueError(
            f"optim.type={cls.__name__!r} trains only float32 weights, and this stage has {half.pop()} weights: set "
            "dtype='float32', or use type='AdamW', which keeps the bits that bfloat16 lacks"
        )
    if cls.__module__.startswith("torchao.") and any(isinstance(p, DTensor) for p in parameters):
        raise ValueError(
            f"optim.type={cls.__name__!r}: its states of few bits cannot be saved in parts: use parallel.type='DDP', "
            "or another optimiser"
        )


def _keep_rates_numbers(optimizer: torch.optim.Optimizer) -> None:
    """Keep learning rates as numbers, for an optimiser that reads them from tensors.

    Torchao's optimisers do so, since their steps are compiled. They get tensors only during a step. Schedules, logs and
    checkpoints have numbers."""
    tensors = [group["lr"] for group in optimizer.param_groups]

    def enter(optimizer, args, kwargs) -> None:
        for group, tensor in zip(optimizer.param_groups, tensors, strict=True):
            numbers.append(group["lr"])
            tensor.fill_(group["lr"])
            group["lr"] = tensor

    def leave(optimizer, args, kwargs) -> None:
        for group in optimizer.param_groups:
            group["lr"] = numbers.pop(0)

    numbers: list[float] = []
    for group in optimizer.param_groups:
        group["lr"] = group["lr"].item()
    optimizer.register_step_pre_hook(enter)
    optimizer.register_step_post_hook(leave)
