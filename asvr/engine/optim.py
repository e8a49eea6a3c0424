"""Optimiser, learning-rate schedule and mixed precision."""

from contextlib import contextmanager

import torch
from mmengine.dist import all_reduce
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper
from torch import nn

from asvr.base.precision import PRECISIONS
from asvr.engine.half_weights import SplitAdamW
from asvr.models.shards import whole
from asvr.models.tree import TRAINED_WITH


class AutocastOptimWrapper(OptimWrapper):
    """MMEngine's optimiser wrapper with bf16 autocast on any device, and clipping and skipping without a
    synchronisation.

    A step whose losses or gradients are not all finite, on any rank, changes neither weights nor the optimiser's state.
    That takes a fused optimizer of torch, as `build_optim_wrapper` makes it; another one steps all the same.
    ``grad_norm`` is the norm before clipping of the last step, ``skipped`` whether it was not finite (bool), both
    tensors () on the device.
    """

    def __init__(self, optimizer, *, precision: str, clip_grad: float | None):
        super().__init__(optimizer)
        if precision not in PRECISIONS:
            raise ValueError(f"optim.precision={precision!r}: expected one of {sorted(PRECISIONS)}")
        self.dtype = PRECISIONS[precision]
        self.max_norm = clip_grad
        self.grad_norm = self.skipped = None
        self._losses: torch.Tensor | None = None  # of the step so far, added up: NaN or infinite where one of them is

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Without autocast's cache, which would hold half-precision copies of all weights to the end of the forward
        pass, though each weight is used once there; and gradients of a weight used several times add up in float32."""
        with torch.autocast(model.device.type, dtype=self.dtype, enabled=self.dtype is not None, cache_enabled=False):
            yield

    def backward(self, loss: torch.Tensor, **kwargs) -> None:
        super().backward(loss, **kwargs)
        self._losses = loss.detach() if self._losses is None else self._losses + loss.detach()

    def step(self, **kwargs) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        max_norm = self.max_norm if self.max_norm is not None else float("inf")
        sums = list(getattr(self.optimizer, "sums", {}).values())  # gradients of half-precision weights
        if sums:
            gradients = [p.grad for p in parameters if p.grad is not None] + sums
            self.grad_norm = nn.utils.get_total_norm(gradients)
            torch._foreach_mul_(gradients, (max_norm / (self.grad_norm + 1e-6)).clamp(max=1.0))
        else:
            self.grad_norm = whole(nn.utils.clip_grad_norm_(parameters, max_norm))
        self.skipped = self._not_finite()
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):  # by which torch's own GradScaler asks
            self.optimizer.found_inf = self.skipped.float()
        self.optimizer.step(**kwargs)

    def _not_finite(self) -> torch.Tensor:
        """All ranks get one answer: gradients are the same on all, losses are each rank's own."""
        finite = self.grad_norm.isfinite()
        if self._losses is not None:
            finite, self._losses = finite & self._losses.isfinite(), None
        skipped = (~finite).to(torch.uint8)  # no bool: not every backend reduces it
        all_reduce(skipped, "max")
        return skipped.bool()


def build_optim_wrapper(model: nn.Module, config: dict) -> AutocastOptimWrapper:
    """AdamW (fused) on the trained parameters, float32 or bfloat16, see `asvr.engine.half_weights`.

    config: ``optim`` of the config. Weight decay applies to matrices only, not to biases and norms.
    ``lr_scale`` multiplies the learning rate of a component: ``dict(heads=2.0)``, and that of the losses with it.
    """
    scales = config.get("lr_scale", {})
    groups: dict[tuple, list] = {}
    for name, module in model.components().items():
        for parameter in module.parameters():
            if parameter.requires_grad:
                decay = config["weight_decay"] if parameter.ndim >= 2 else 0.0
                scale = scales.get(TRAINED_WITH.get(name, name), 1.0)
                groups.setdefault((scale, decay), []).append(parameter)
    if not groups:
        raise ValueError("nothing to train: `train` of this stage names no component with parameters")
    parameters = [
        dict(params=members, lr=config["lr"] * scale, weight_decay=decay) for (scale, decay), members in groups.items()
    ]
    optimizer = SplitAdamW(parameters, lr=config["lr"], betas=tuple(config["betas"]))
    return AutocastOptimWrapper(optimizer, precision=config["precision"], clip_grad=config["clip_grad"])


def build_schedulers(optim_wrapper: AutocastOptimWrapper, config: dict, steps: int) -> list:
    """Linear warm-up over ``warmup_ratio`` of the steps, then a cosine to ``min_lr_ratio`` of the peak."""
    warmup = round(config["warmup_ratio"] * steps)
    schedulers = []
    if warmup:
        # `end` is the step after the last one that it changes: the peak, where the cosine begins
        schedulers.append(LinearLR(optim_wrapper, start_factor=1 / (warmup + 1), end=warmup + 1, by_epoch=False))
    if steps > warmup:
        ratio = config.get("min_lr_ratio", 0.0)
        schedulers.append(
            CosineAnnealingLR(
                optim_wrapper, T_max=steps - warmup, eta_min_ratio=ratio, begin=warmup, end=steps, by_epoch=False
            )
        )
    return schedulers
