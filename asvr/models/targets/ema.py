"""Exponential moving averages of weights, for targets whose teacher follows a part of the model."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from asvr.models.shards import full_tensor, local_shard


@torch.no_grad()
def move_towards(teacher: nn.Module, student: nn.Module, *, decay: float, skipped: Tensor | None = None) -> None:
    """``teacher = decay * teacher + (1 - decay) * student``, weights and floating-point buffers alike; other buffers
    are copied. skipped: () bool on the device; where it is true, nothing moves, and nothing waits for it.

    Both have the same tensors by name; they may be sharded over processes, each in its own way: every process calls
    it. Raises ``ValueError`` where the names differ, and for a teacher in half precision, in which a small share of a
    difference is lost: keep it in float32 (``copy.deepcopy(part).float()``).
    """
    own, other = teacher.state_dict(keep_vars=True), student.state_dict(keep_vars=True)
    if own.keys() != other.keys():
        different = sorted(own.keys() ^ other.keys())
        raise ValueError(f"teacher and student differ in {', '.join(different[:3])} ({len(different)} tensors)")
    if half := [key for key, value in own.items() if value.dtype in (torch.bfloat16, torch.float16)]:
        raise ValueError(
            f"{half[0]} of a teacher is {own[half[0]].dtype}, in which an average does not move: use float()"
        )
    share = 1.0 - decay if skipped is None else torch.where(skipped, 0.0, 1.0 - decay).float()
    for key, value in own.items():
        target, source = _aligned(value.detach(), other[key].detach())
        if target.is_floating_point():
            target.lerp_(source.to(target), share if skipped is None else share.to(target.dtype))
        else:
            target.copy_(source if skipped is None else torch.where(skipped, target, source.to(target)))


def _aligned(own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """What this process holds of ``own``, and the same part of ``other``."""
    if isinstance(own, DTensor):
        if not isinstance(other, DTensor) or other.placements != own.placements:
            other = local_shard(full_tensor(other), own)
        return own.to_local(), other.to_local()
    return own, full_tensor(other)
