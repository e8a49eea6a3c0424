"""Exponential moving averages (EMA) of weights, for targets whose teacher follows a part of the model."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from asvr.models.shards import full_tensor, local_shard


@torch.no_grad()
def move_towards(teacher: nn.Module, student: nn.Module, *, decay: float, skipped: Tensor | None = None) -> None:
    """Update a moving average: ``teacher = decay * teacher + (1 - decay) * student``.

    This holds for weights and floating-point buffers. Other buffers are copied. skipped: () bool on the device. If it
    is true, nothing changes. Nothing waits for the device.

    Both modules need tensors with the same names. Each may be sharded over processes in its own way, so every process
    must call this. Raises ``ValueError`` if the names differ, or if the teacher is in half precision: small updates
    would be lost by rounding. Keep it in float32 (``copy.deepcopy(part).float()``).
    """
    own, other = teacher.state_dict(keep_vars=True), student.state_dict(keep_vars=True)
    if own.keys() != other.keys():
        different = sorted(own.keys() ^ other.keys())
        raise ValueError(
            f"teacher and student differ in {', '.join(different[:3])} ({len(different)} tensors): expected the same "
            "tensors in both"
        )
    if half := [key for key, value in own.items() if value.dtype in (torch.bfloat16, torch.float16)]:
        raise ValueError(
            f"{half[0]} of a teacher is {own[half[0]].dtype}, where small updates are lost: use teacher.float()"
        )
    share = 1.0 - decay if skipped is None else torch.where(skipped, 0.0, 1.0 - decay).float()
    for key, value in own.items():
        target, source = _aligned(value.detach(), other[key].detach())
        if target.is_floating_point():
            target.lerp_(source.to(target), share if skipped is None else share.to(target))
        else:
            target.copy_(
                source if skipped is None else torch.where(skipped.to(target.device), target, source.to(target))
            )


def _aligned(own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return this process's part of ``own``, and the same part of ``other``."""
    if isinstance(own, DTensor):
        if not isinstance(other, DTensor) or other.placements != own.placements:
            other = local_shard(full_tensor(other), own)
        return own.to_local(), other.to_local()
    return own, full_tensor(other)
