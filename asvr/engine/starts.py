"""Loads the weights that a stage starts with from the last checkpoint of another stage."""

from pathlib import Path

from torch import nn

from asvr.engine import checkpoint
from asvr.models.trainable import release
from asvr.models.transforms import apply_transforms, merge_transforms
from asvr.models.tree import is_trained
from asvr.recipe.recipe import Stage

LAST_TAP = "before the final norm"  # the state of ``tap=num_layers``; in earlier versions it was after the norm


def load_start(start: Path, model: nn.Module) -> None:
    """Load the weights of the stage that a model starts from. Targets that this stage does not have are new.

    Raises ``ValueError`` for a new target whose head is not trained.
    """
    require_same_taps(start, model)
    checkpoint.check_frozen(start, model)
    new = checkpoint.load_weights(start, model, start=True)
    for target in (target for target in model.targets if target.name in new):
        if target.name in model.heads and not is_trained(model.heads[target.name]):
            raise ValueError(
                f"{start} has no head of target {target.name!r}, and the stage does not train it: add 'heads' to "
                "its `train`, or leave the target out"
            )
        target.start(model)


def begin_with(start: Path, model: nn.Module, *, before: Stage, stage: Stage) -> None:
    """The same as `load_start`, for a stage with other transforms than the stage ``before``.

    The model is not transformed yet. Transforms that both stages begin with stay. Others are merged."""
    release(model, model.held)
    apply_transforms(model, before.model_transforms)
    load_start(start, model)
    merge_transforms(model, keep=stage.transforms_shared_with(before))


def require_same_taps(folder: Path, model: nn.Module) -> None:
    """Raise ``ValueError`` if a head was trained on another hidden state than the one that ``tap`` means now."""
    if checkpoint.read_meta(folder).get("last_tap") == LAST_TAP:
        return
    for target in model.targets:
        if (tap := getattr(model.llm, "num_layers", None)) in target.taps:
            raise ValueError(
                f"{folder}: an earlier version trained target {target.name!r} on the state after the final norm, "
                f"which was tap={tap} then and is tap=-1 now: train it again with --resume never"
            )
