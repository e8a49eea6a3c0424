"""The weights that a stage starts with, out of the last checkpoint of another stage."""

from pathlib import Path

from torch import nn

from asvr.engine import checkpoint
from asvr.models.trainable import release
from asvr.models.transforms import apply_transforms, merge_transforms
from asvr.models.tree import is_trained
from asvr.recipe.recipe import Stage

LAST_TAP = "before the final norm"  # what ``tap=num_layers`` names; earlier versions took the state behind the norm


def load_start(start: Path, model: nn.Module) -> None:
    """Give a model the weights of the stage that it starts from. Targets that this one has not are new.

    Raises ``ValueError`` for a new target whose head the stage does not train.
    """
    require_same_taps(start, model)
    checkpoint.check_frozen(start, model)
    new = checkpoint.load_weights(start, model, start=True)
    for target in (target for target in model.targets if target.name in new):
        if target.name in model.heads and not is_trained(model.heads[target.name]):
            raise ValueError(
                f"{start} has no head of target {target.name!r}, and the stage leaves it untrained: name 'heads' in "
                "its `train`, or leave the target out"
            )
        target.start(model)


def begin_with(start: Path, model: nn.Module, *, before: Stage, stage: Stage) -> None:
    """`load_start` of a model that is not transformed yet, from a stage with other transforms (``before``). What both
    stages begin with stays as it is; the others are merged."""
    release(model, model.held)
    apply_transforms(model, before.model_transforms)
    load_start(start, model)
    merge_transforms(model, keep=stage.transforms_shared_with(before))


def require_same_taps(folder: Path, model: nn.Module) -> None:
    """Raise ``ValueError`` where a head was trained on another hidden state than ``tap`` names now."""
    if checkpoint.read_meta(folder).get("last_tap") == LAST_TAP:
        return
    for target in model.targets:
        if (tap := getattr(model.llm, "num_layers", None)) in target.taps:
            raise ValueError(
                f"{folder}: an earlier version trained target {target.name!r} on the state behind the final norm, "
                f"which tap={tap} named then and tap=-1 names now: train it anew with --resume never"
            )
