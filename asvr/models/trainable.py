"""What a stage trains: components by name, and weights by patterns.

An entry of ``train`` is a pattern of `fnmatch`. It is compared with names of weights such as
``llm.model.model.layers.0.mlp.up_proj.weight``, which begin with a component of `VLM.components`, and with names of
modules. If it matches a module, it means all weights of the module: ``llm`` is the whole LLM, and ``llm.*.self_attn``
its attention.
"""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from asvr.base.text import nearest
from asvr.models.tree import TRAINABLE, TRAINED_WITH, check_components


def components_of(train: Iterable[str]) -> set[str]:
    """Return the components that the entries of ``train`` name, in full or in part."""
    return {entry.partition(".")[0] for entry in train}


def is_matched(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches the name, or the name of a module that contains it."""
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for pattern in patterns)


def near_names(pattern: str, names: Iterable[str]) -> str:
    """Return a hint with names near a pattern that matches nothing: names of weights, layers and modules.

    If the pattern has ``*``, the hint has short patterns such as ``llm.*.self_attn``. Otherwise it has full names, with
    ``*`` in place of layer numbers."""
    own = {name for name in names if name.startswith(f"{pattern.partition('.')[0]}.")} or set(names)
    parts = [re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name).split(".") for name in own]
    known = {".".join(one[:length]) for one in parts for length in range(2, len(one) + 1) if one[length - 1] != "*"}
    if "*" in pattern:
        known = {f"{name.partition('.')[0]}.*.{name.rpartition('.')[2]}" for name in known}
    return nearest(pattern, known)


def train_only(model: nn.Module, train: list[str], held: set[str]) -> None:
    """Train only what ``train`` names. Weights that a component or a transform froze stay frozen.

    held: names of the parameters that the last call froze; it is changed in place.

    Raises ``ValueError`` if an entry names no component, or matches nothing that can be trained. Also if a tensor of
    the model is in no component: it would be neither trained nor saved.
    """
    parts = model.components()
    unknown = [name for name in train if name.partition(".")[0] not in TRAINABLE]
    if unknown:
        raise ValueError(
            f"train={train}: unknown {unknown}; expected some of {', '.join(TRAINABLE)}, or patterns of their weights, "
            "such as 'llm.*.self_attn'"
        )
    check_components(model, parts)
    parameters = {f"{part}.{key}": p for part, module in parts.items() for key, p in module.named_parameters()}
    frozen = {key for key, p in parameters.items() if not p.requires_grad} - held
    for entry in train:
        _check_entry(train, entry, parameters, frozen)
    for key, parameter in parameters.items():
        part, _, own = key.partition(".")
        name = f"{TRAINED_WITH.get(part, part)}.{own}"
        named = is_matched(name, train) or (part == "separators" and "projector" in components_of(train))
        parameter.requires_grad_(named and key not in frozen)
    held.clear()
    held.update({key for key, p in parameters.items() if not p.requires_grad} - frozen)


def _check_entry(train: list[str], entry: str, parameters: dict[str, nn.Parameter], frozen: set[str]) -> None:
    found = {key for key in parameters if is_matched(key, [entry])}
    if not found and "." in entry:
        component = entry.partition(".")[0]
        raise ValueError(
            f"train={train}: {entry!r} matches no weight of the {component}; {near_names(entry, parameters)}"
        )
    if found and found <= frozen:
        raise ValueError(
            f"train={train}: every weight of {entry} was frozen where it was built (requires_grad=False), so "
            f"there is nothing to train: leave {entry!r} out, or build it with weights to train"
        )


def release(model: nn.Module, held: set[str]) -> None:
    """Undo `train_only`. After this, only weights that a component froze itself are frozen."""
    for part, module in model.components().items():
        for key, parameter in module.named_parameters():
            if f"{part}.{key}" in held:
                parameter.requires_grad_(True)
    held.clear()


def keep_statistics(model: nn.Module, held: set[str]) -> None:
    """Put norms that `train_only` froze into eval mode, so that their running statistics do not change."""
    for part, component in model.components().items():
        for name, module in component.named_modules():
            if isinstance(module, _NormBase):
                own = [".".join(filter(None, (part, name, key))) for key, _ in module.named_parameters(recurse=False)]
                if own and held.issuperset(own):
                    module.eval()


def is_whole(module: nn.Module) -> bool:
    """Whether a component is trained as a whole: it has weights, and none of them is frozen."""
    parameters = list(module.parameters())
    return bool(parameters) and all(parameter.requires_grad for parameter in parameters)


def trained_shares(model: nn.Module) -> dict[str, float]:
    """Return for each component the share of its matrix weights that are trained, above 0 and up to 1.

    This is about the share of the FLOPs that the gradients of its weights take. Components with nothing to train are
    left out."""
    shares = {}
    for name, component in model.components().items():
        tables = {id(p) for m in component.modules() if isinstance(m, nn.Embedding) for p in m.parameters(False)}
        used = {id(p) for m in component.modules() if isinstance(m, nn.Linear) for p in m.parameters(False)}
        weights = [p for p in component.parameters() if p.ndim >= 2 and (id(p) not in tables or id(p) in used)]
        trained = sum(p.numel() for p in weights if p.requires_grad)
        if any(p.requires_grad for p in component.parameters()):
            total = sum(p.numel() for p in weights) + packed_weights(component)
            shares[name] = 1.0 if is_whole(component) else trained / max(1, total)
    return shares


def packed_weights(component: nn.Module) -> int:
    """Return how many frozen weights its tensors do not count, because a layer packs several into one element."""
    return sum(getattr(module, "uncounted", 0) for module in component.modules())


def kept_whole(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters of layers whose weights every process has in full, even if others are sharded."""
    layers = (module for module in model.modules() if getattr(module, "kept_whole", False))
    return {parameter for layer in layers for parameter in layer.parameters(recurse=False)}
