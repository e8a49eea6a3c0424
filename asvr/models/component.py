"""The base class of all parts of a model: where the weights come from, and a fingerprint of them."""

import hashlib
from collections.abc import Collection

import torch
from torch import nn

from asvr.models.shards import full_tensor, untied_state_dict

# Fields of a component's config that name the files of its weights.
WEIGHT_FIELDS = ("name", "weights")


def without_weights(config: dict, *, nested: bool = False) -> dict:
    """Return a component's config without the fields that name files of weights.

    Together with a fingerprint of the weights, it decides the component's output. nested: whether the fields of the
    components in it are left out too. (For a visual tokenizer they stay, because names of old caches contain them.)"""
    own = {key: value for key, value in config.items() if key not in WEIGHT_FIELDS}
    return {key: _nested_without_weights(value) for key, value in own.items()} if nested else own


def _nested_without_weights(value):
    if isinstance(value, dict) and "type" in value:
        return without_weights(value, nested=True)
    return [_nested_without_weights(item) for item in value] if isinstance(value, list | tuple) else value


class Component(nn.Module):
    """A part of the model.

    source: the name or folder from which its weights were loaded. None: they were initialised here, and no other file
    holds them, so checkpoints do. apart: if there is a ``source``, the keys of tensors that are not in its files: they
    were loaded from a checkpoint or added later.
    """

    source: str | None = None
    apart: frozenset[str] = frozenset()

    def fingerprint(self) -> str:
        return fingerprint(self)

    def portable(self, config: dict) -> dict:
        """Return the ``config`` of this component without names of files.

        Together with the weights, which are saved elsewhere, it is all that is needed to build the component again."""
        return without_weights(config)


def fingerprint_of(part: nn.Module) -> str:
    """Return a part's fingerprint, by its own method if it has one. (A ``ModuleDict`` such as the heads has none.)"""
    return part.fingerprint() if hasattr(part, "fingerprint") else fingerprint(part)


def source_of(part: nn.Module) -> str | None:
    return getattr(part, "source", None)


def apart_of(part: nn.Module) -> frozenset[str]:
    return getattr(part, "apart", frozenset())


def portable_of(part: nn.Module, config: dict) -> dict:
    return part.portable(config) if hasattr(part, "portable") else without_weights(config)


def fingerprint(module: nn.Module) -> str:
    """Return a SHA-256 (16 hex digits) of the names, dtypes, shapes and bytes of all parameters and buffers.

    It is the same for sharded tensors, but then every process must call it."""
    return fingerprint_in(module, None)


def fingerprint_in(module: nn.Module, dtype: torch.dtype | None, without: Collection[str] = ()) -> str:
    """Return the `fingerprint` that ``module`` would have with its floating-point numbers in ``dtype``.

    dtype: None: the dtypes that they have. without: keys of tensors that are left out. If it is given, tied tensors
    count once, with one name."""
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
