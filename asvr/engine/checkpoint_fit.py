"""Checks whether a checkpoint's weights fit a model, by name, shape and component."""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from asvr.base.log import logger
from asvr.engine.checkpoint_folder import read_meta
from asvr.engine.saved import own_components
from asvr.models.component import apart_of, source_of
from asvr.models.shards import untied_state_dict
from asvr.recipe.model_folder import tell_new_separators

OF_TARGETS = ("heads", "losses", "teachers")  # components with a part for each target, by the target's name


def check_fit(
    folder: Path, model: nn.Module, shapes: dict[str, torch.Size], *, start: bool = False
) -> tuple[dict[str, set[str]], list[str]]:
    """Return the components that a checkpoint holds, with their keys, and the names of new targets.

    New targets are the model's targets that the checkpoint does not have. They are allowed if the checkpoint is only
    the start of a stage. Raises ``ValueError`` if the weights are not those of this model."""
    components = model.components()
    by_component: dict[str, dict] = {}
    for key, shape in shapes.items():
        name, _, rest = key.partition(".")
        by_component.setdefault(name, {})[rest] = shape
    new = _other_targets(folder, model, by_component) if start else []
    parts = own_components(model).items()
    homeless = {n for n, m in parts if apart_of(m) or (source_of(m) is None and not _is_new(n, m, new))}
    missing = homeless - by_component.keys()
    if "losses" in missing:
        logger.warning("%s: an earlier version saved no weights of losses; they keep their first values", folder)
        missing.remove("losses")
    if "separators" in missing:  # the stage before saw images whole
        tell_new_separators(model, folder)
        missing.remove("separators")
    if "separators" in by_component and "separators" not in components:  # the stage before saw tiles
        logger.info("%s: its separators are ignored, since model.layout has none", folder)
        del by_component["separators"]
    unknown = by_component.keys() - components.keys()
    if missing or unknown:
        raise ValueError(
            f"{folder} is a checkpoint of another model: components missing in it: {sorted(missing)}, unknown "
            f"components: {sorted(unknown)}"
        )
    for name, own in by_component.items():
        expected = untied_state_dict(components[name])
        needed = apart_of(components[name]) if name in read_meta(folder)["frozen"] else expected.keys()
        needed = {key for key in needed if not of_targets(name, key, new)}
        wrong = sorted((needed | own.keys()) - (expected.keys() & own.keys()))
        wrong = wrong or [key for key in own if own[key] != expected[key].shape]
        if wrong:
            raise ValueError(f"{folder}: weights of {name} do not fit this model; the first ones: {wrong[:5]}")
    return {name: set(own) for name, own in by_component.items()}, new


def of_targets(component: str, key: str, names: Collection[str]) -> bool:
    """Whether a weight of a component belongs to one of these targets."""
    return component in OF_TARGETS and key.partition(".")[0] in names


def _is_new(name: str, module: nn.Module, new: list[str]) -> bool:
    """Whether a component has no weights besides those of new targets, so that the checkpoint cannot hold it."""
    return all(of_targets(name, key, new) for key in module.state_dict())


def _other_targets(folder: Path, model: nn.Module, by_component: dict[str, dict]) -> list[str]:
    """Return the targets that the checkpoint does not have.

    Weights of targets that the model does not have are removed from ``by_component``."""
    own = {target.name for target in model.targets}
    known = {key.partition(".")[0] for name in OF_TARGETS for key in by_component.get(name, {})}
    gone = sorted(known - own)
    for name in by_component.keys() & set(OF_TARGETS):
        by_component[name] = {k: shape for k, shape in by_component[name].items() if not of_targets(name, k, gone)}
        if not by_component[name]:
            del by_component[name]
    if gone:
        logger.info("%s: its targets %s are ignored, since the stage does not have them", folder, ", ".join(gone))
    if new := sorted(name for name in own - known if _has_weights(model, name)):
        logger.info("%s has no target %s: it is new in this stage", folder, ", ".join(new))
    return new


def _has_weights(model: nn.Module, name: str) -> bool:
    parts = (parts[name] for parts in (model.heads, model.losses, model.teachers) if name in parts)
    return any(part.state_dict() for part in parts)
