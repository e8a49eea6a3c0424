"""Builds a target from an entry of ``model.reconstruction``."""

import inspect

from torch import nn

from asvr.models.targets.base import Target
from asvr.registry import TARGETS


def build_target(entry: dict, *, model_projector: nn.Module, **given) -> Target:
    """Build a target. An entry without a ``type`` is a `CodeTarget`.

    given: the arguments that every target gets. model_projector: the model's projector. Only a class whose constructor
    has an argument of this name gets it."""
    entry = dict(dict(type="CodeTarget"), **entry)
    kind = TARGETS.get(entry["type"])
    makers = [own.__dict__["__init__"] for own in getattr(kind, "__mro__", ()) if "__init__" in own.__dict__]
    if any("model_projector" in inspect.signature(maker).parameters for maker in makers):
        given["model_projector"] = model_projector
    return TARGETS.build(entry, default_args=given)


def check_together(targets: list[Target]) -> None:
    """Raise ``ValueError`` for targets that one model cannot have together."""
    names = [target.name for target in targets]
    if len(set(names)) != len(names):
        raise ValueError(f"model.reconstruction: the names must differ, but they are {names}")
    if len(both := [target.name for target in targets if target.shares_mask]) > 1:
        raise ValueError(
            f"model.reconstruction: only one target may mask the images that the text reads, but {both} do"
        )
