"""An optimiser's step, with mixed precision and clipping. Steps that are not finite are skipped."""

import logging
from collections.abc import Callable
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import distributed as dist
from torch import nn

from asvr.base import compat
from asvr.base.log_once import log_once
from asvr.base.precision import PRECISIONS
from asvr.engine.optimizers import build_optimizer
from asvr.models.shards import full_tensor, local_tensor


class AutocastOptimWrapper(OptimWrapper):
    """MMEngine's optimiser wrapper with bf16 autocast on any device, clipping without a synchronisation, and skipping.

    If a loss or a gradient on any rank is not finite, the step changes neither the weights nor the optimiser's state. A
    fused optimiser of torch (AdamW, Adam, SGD without momentum) skips the step on the device. For any other optimiser,
    this process waits in each step until the device knows whether all values are finite. Its kernels are then launched
    after the backward pass, not while it runs.
    ``grad_norm`` is the norm of the last step before clipping. ``skipped`` (bool) says whether that step was skipped.
    Both are tensors () on the device of the gradients.

    before_step: called with the optimiser before gradients are clipped. A wrapper of several processes may set it, to
        complete gradients that it left to the optimiser.
    """

    never_skips = False  # a benchmark sets this, to measure a step that neither skips nor waits

    def __init__(self, optimizer, *, precision: str, clip_grad: float | None):
        super().__init__(optimizer)
        if precision not in PRECISIONS:
            raise ValueError(f"optim.precision={precision!r}: expected one of {sorted(PRECISIONS)}")
        self.dtype = PRECISIONS[precision]
        self.max_norm = clip_grad
        self.grad_norm = self.skipped = None
        self.before_step: Callable[[torch.optim.Optimizer], None] | None = None
        if not compat.skips_on_device(optimizer):
            name = type(optimizer).__name__
            log_once(logging.INFO, "optim.type=%r: each step waits for the device to know if it is finite", name)
        self._losses: torch.Tensor | None = None  # the sum of the step's losses: not finite if one of them is not

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Autocast without its cache.

        The cache would keep half-precision copies of all weights until the forward pass ends, though most are used only
        once. Without it, the gradients of a weight that is used several times add up in float32."""
        with torch.autocast(model.device.type, dtype=self.dtype, enabled=self.dtype is not None, cache_enabled=False):
            yield

    def backward(self, loss: torch.Tensor, **kwargs) -> None:
        super().backward(loss, **kwargs)
        self._losses = loss.detach() if self._losses is None else self._losses + loss.detach()

    def step(self, **kwargs) -> None:
        if self.before_step is not None:
            self.before_step(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        max_norm = self.max_norm if self.max_norm is not None else float("inf")
        sums = list(getattr(self.optimizer, "sums", {}).values())  # gradients of half-precision weights
        if sums:
            gradients = [p.grad for p in parameters if p.grad is not None] + sums
            self.grad_norm = full_tensor(nn.utils.get_total_norm(gradients))
            factor = (max_norm / (self.grad_norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_([local_tensor(gradient) for gradient in gradients], factor)
        else:
            self.grad_norm = full_tensor(nn.utils.clip_grad_norm_(parameters, max_norm))
        self.skipped = self._not_finite()
        on_device = compat.skips_on_device(self.optimizer)
        if on_device:
            self.optimizer.found_inf = self.skipped.float()
        if on_device or self.never_skips or not self.skipped.item():
            self.optimizer.step(**kwargs)

    def _not_finite(self) -> torch.Tensor:
        """Whether the step is not finite on any rank. Gradients are the same on all ranks, losses are not."""
        finite = self.grad_norm.isfinite()
        if self._losses is not None:
            finite, self._losses = finite & self._losses.isfinite().to(finite.device), None
        skipped = (~finite).to(torch.uint8)  # not bool, since some backends cannot reduce it
        if dist.is_initialized():  # not MMEngine's function: it goes through the CPU if the group has two backends
            dist.all_reduce(skipped, op=dist.ReduceOp.MAX)
        return skipped.bool()


def build_optim_wrapper(model: nn.Module, config: dict) -> AutocastOptimWrapper:
    """Build the optimiser that ``optim`` of a config names (see `asvr.engine.optimizers`), in its wrapper."""
    optimizer = build_optimizer(model, config)
    return AutocastOptimWrapper(optimizer, precision=config["precision"], clip_grad=config["clip_grad"])
