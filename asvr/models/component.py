"""What every part of a model has: where its weights come from, and a fingerprint of them."""

import hashlib
from collections.abc import Collection

import torch
from torch import nn

from asvr.models.shards import full_tensor, untied_state_dict

# Fields of a component's config that name the files its weights come from.
WEIGHT_FIELDS = ("name", "weights")


def without_weights(config: dict, *, nested: bool = False) -> dict:
    """What decides a component's output besides its weights, which its fingerprint stands for. nested: without those
    of the components in it too. (Of a visual tokenizer they stay: caches of earlier versions are named by them.)"""
    own = {key: value for key, value in config.items() if key not in WEIGHT_FIELDS}
    return {key: _nested_without_weights(value) for key, value in own.items()} if nested else own


def _nested_without_weights(value):
    if isinstance(value, dict) and "type" in value:
        return without_weights(value, nested=True)
    return [_nested_without_weights(item) for item in value] if isinstance(value, list | tuple) else value


class Component(nn.Module):
    """A part of the model. ``source`` names the files its weights were loaded from (a name or folder),
    or is None when it was initialised here: such weights stand in no other file, so checkpoints hold them. ``apart``:
    of a part with a ``source``, the keys of its tensors that stand elsewhere: loaded from a checkpoint, or added here.
    """

    source: str | None = None
    apart: frozenset[str] = frozenset()

    def fingerprint(self) -> str:
        return fingerprint(self)

    def portable(self, config: dict) -> dict:
        """``config`` of this component, without the files that it names: together with the weights, which stand
        elsewhere, all that is needed to build it anew."""
        return without_weights(config)


def fingerprint_of(part: nn.Module) -> str:
    """By the part's own method. A part need not be a `Component`: the heads are in a ``ModuleDict``, which has none."""
    return part.fingerprint() if hasattr(part, "fingerprint") else fingerprint(part)


def source_of(part: nn.Module) -> str | None:
    return getattr(part, "source", None)


def apart_of(part: nn.Module) -> frozenset[str]:
    return getattr(part, "apart", frozenset())


def portable_of(part: nn.Module, config: dict) -> dict:
    return part.portable(config) if hasattr(part, "portable") else without_weights(config)


def fingerprint(module: nn.Module) -> str:
    """SHA-256 (16 hex digits) over names, dtypes, shapes and bytes of all parameters and buffers. Of sharded ones as of
    whole ones: every process calls it."""
    return fingerprint_in(module, None)


def fingerprint_in(module: nn.Module, dtype: torch.dtype | None, without: Collection[str] = ()) -> str:
    """The `fingerprint` that ``module`` would have with its floating-point numbers in ``dtype``; None: as they are.
    without: keys of tensors that are left out, of tied ones too, which have one name then."""
    digest = hashlib.sha256()
    tensors = (
        module.state_dict() if not without else {k: v for k, v in untied_state_dict(module).items() if k not in without}
    )
    for name, tensor in sorted(tensors.items()):
        tensor = full_tensor(tensor.detach())
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
