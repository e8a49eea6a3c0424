"""Helpers for tensors that are sharded over processes (`DTensor`) and for those that are not."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor. If it is sharded, all processes must call this, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def plain_shard(tensor: Tensor) -> Tensor:
    """Return the tensor with the same data as a plain tensor, which files need.

    Shards that `Float8` gathers in 8 bits have a class of torchao's, which keeps the data in ``_tensor``."""
    if not isinstance(tensor, DTensor) or not hasattr(tensor.to_local(), "fsdp_pre_all_gather"):
        return tensor
    return DTensor.from_local(
        tensor.to_local()._tensor,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def local_tensor(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, in the same memory. If it is not sharded, it is all."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_shard(source, own: Tensor) -> Tensor:
    """Return this process's part of ``source``, sharded in the same way as ``own``. If ``own`` is not, it is all.

    source: a full tensor, or a slice from safetensors' ``get_slice``. Only the needed part of a slice is read.
    """
    if not isinstance(own, DTensor):
        return source if isinstance(source, Tensor) else source[...]  # a scalar has no slices, so [...]
    cut = [dim for dim, placement in enumerate(own.placements) if placement.is_shard()]
    assert len(cut) == 1 and own.placements[cut[0]].dim == 0, "FSDP2 shards the first dimension, once"
    rows, parts = own.shape[0], own.device_mesh.size(cut[0])
    begin = min(own.device_mesh.get_local_rank(cut[0]) * -(-rows // parts), rows)  # as torch.chunk cuts
    count = own.to_local().shape[0]
    # ``DTensor.from_local`` would move the part to the device of the mesh, but ``own`` may be in the CPU's memory.
    found = torch.empty_like(own.detach())
    found.to_local().copy_(source[begin : begin + count])
    return found


def untied_state_dict(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return the state dict with only one name for each tensor. Tied weights have several names."""
    seen, out = set(), {}
    for key, value in module.state_dict(keep_vars=True).items():
        # A shard may be empty, and then has no address in memory. A tensor on the meta device never has one.
        placeless = isinstance(value, DTensor) or value.is_meta
        place = id(value) if placeless else (value.data_ptr(), value.shape)
        if value.numel() == 0 or place not in seen:
            out[key] = plain_shard(value.detach())
            seen.add(place)
    return out
