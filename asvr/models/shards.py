"""Tensors of which each process holds a part (`DTensor`), and whole ones."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor. Of one that is in parts all processes must ask, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(source, own: Tensor) -> Tensor:
    """What this process holds of ``source`` where the parts are cut as those of ``own`` are.

    source: a whole tensor, or a slice of safetensors' ``get_slice``, of which nothing else is read then. Where ``own``
    is not in parts, all of it.
    """
    if not isinstance(own, DTensor):
        return source if isinstance(source, Tensor) else source[...]  # of a number too, which has no slice
    cut = [dim for dim, placement in enumerate(own.placements) if placement.is_shard()]
    assert len(cut) == 1 and own.placements[cut[0]].dim == 0, "FSDP2 cuts the first dimension, once"
    rows, parts = own.shape[0], own.device_mesh.size(cut[0])
    begin = min(own.device_mesh.get_local_rank(cut[0]) * -(-rows // parts), rows)  # as torch.chunk cuts
    count = own.to_local().shape[0]
    return DTensor.from_local(
        source[begin : begin + count].to(own.device, own.dtype),
        own.device_mesh,
        own.placements,
        run_check=False,
        shape=own.shape,
        stride=own.stride(),
    )


def untied_state_dict(module: torch.nn.Module) -> dict[str, Tensor]:
    """The state dict with one name for each tensor: tied weights have several."""
    seen, out = set(), {}
    for key, value in module.state_dict(keep_vars=True).items():
        # A part may be empty, and then has no place in memory of its own; a tensor on the meta device never has.
        placeless = isinstance(value, DTensor) or value.is_meta
        place = id(value) if placeless else (value.data_ptr(), value.shape)
        if value.numel() == 0 or place not in seen:
            out[key] = value.detach()
            seen.add(place)
    return out
