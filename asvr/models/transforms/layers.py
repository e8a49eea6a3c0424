"""Finds and replaces the linear layers that a transform's patterns name."""

from collections.abc import Sequence

from torch import nn

from asvr.models.trainable import is_matched, near_names


def linear_layers(model: nn.Module, patterns: Sequence[str], name: str) -> dict[str, dict[str, nn.Linear]]:
    """Return all linear layers that the patterns match: component -> name in it -> layer.

    Visual tokenizers are left out. name: the transform's name, for messages. Raises ``ValueError`` if a pattern matches
    no linear layer."""
    parts = {n: part for n, part in model.components().items() if not n.startswith("tokenizer.")}
    known = {
        f"{n}.{key}": (n, key, layer)
        for n, part in parts.items()
        for key, layer in part.named_modules()
        if key and isinstance(layer, nn.Linear)
    }
    for pattern in patterns:
        if not any(is_matched(full, [pattern]) for full in known):
            raise ValueError(f"{name}: layers={pattern!r} matches no linear layer; {near_names(pattern, known)}")
    found: dict[str, dict[str, nn.Linear]] = {}
    for full, (n, key, layer) in known.items():
        if is_matched(full, patterns):
            found.setdefault(n, {})[key] = layer
    return found


def replace_layer(part: nn.Module, key: str, layer: nn.Module) -> None:
    """Replace the layer with this name by ``layer``."""
    parent, _, own = key.rpartition(".")
    setattr(part.get_submodule(parent), own, layer)


def plain_linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """Return a linear layer with these parameters. It draws no random numbers."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight, layer.bias = weight, bias
    return layer
