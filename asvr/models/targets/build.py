"""From an entry of ``model.reconstruction`` to a target."""

import inspect

from torch import nn

from asvr.models.targets.base import Target
from asvr.registry import TARGETS


def build_target(entry: dict, *, model_projector: nn.Module, **given) -> Target:
    """given: what the library gives every target. model_projector: the model's, only for a class whose constructor
    takes it by this name. Without a ``type`` it is a `CodeTarget`."""
    entry = dict(dict(type="CodeTarget"), **entry)
    kind = TARGETS.get(entry["type"])
    makers = [own.__dict__["__init__"] for own in getattr(kind, "__mro__", ()) if "__init__" in own.__dict__]
    if any("model_projector" in inspect.signature(maker).parameters for maker in makers):
        given["model_projector"] = model_projector
    return TARGETS.build(entry, default_args=given)


def check_together(targets: list[Target]) -> None:
    """Raise ``ValueError`` for targets that one model cannot have."""
    names = [target.name for target in targets]
    if len(set(names)) != len(names):
        raise ValueError(f"model.reconstruction: names must differ, given {names}")
    if len(both := [target.name for target in targets if target.shares_mask]) > 1:
        raise ValueError(
            f"model.reconstruction: one target alone may mask the images that the text reads, given {both}"
        )
