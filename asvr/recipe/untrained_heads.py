"""Targets whose head no stage trains."""

import logging

from torch import nn

from asvr.base.log_once import log_once
from asvr.models.trainable import is_matched
from asvr.models.tree import is_trained
from asvr.recipe.config import SCRATCH
from asvr.recipe.recipe import Recipe, Stage


def warn_of_untrained_heads(recipe: Recipe, models: dict[str, nn.Module]) -> None:
    """Warn, for each stage, of heads that keep their random weights although their loss has a weight.

    A head that an earlier stage trained may stay frozen. So may one that its own constructor froze. A stage that starts
    from a model folder is left to `asvr.recipe.model_folder.start_from`, which knows the heads of the folder.

    models: the model of each stage, which may be on the meta device.
    """
    stages = Recipe(recipe.config).stages  # `recipe` may be one stage alone, which starts from another one
    for name, model in models.items():
        stage = recipe.stages[name]
        for target in (target.name for target in model.targets if target.counts):
            if _is_left_out(model, stage, target) and not _was_trained(stages, stage.init, target):
                log_once(
                    logging.WARNING,
                    "stages.%s.train=%r lacks 'heads', and no earlier stage trains the head of target %r: the head "
                    "keeps its random weights. Add 'heads' to `train`",
                    name,
                    list(stage.train),
                    target,
                )


def _is_left_out(model: nn.Module, stage: Stage, target: str) -> bool:
    """Whether a target has a head with weights, and ``train`` names none of them."""
    if target not in model.heads or is_trained(model.heads[target]):
        return False
    return any(
        not is_matched(f"heads.{target}.{key}", stage.train) for key, _ in model.heads[target].named_parameters()
    )


def _was_trained(stages: dict[str, Stage], name: str, target: str) -> bool:
    """Whether a stage, or one that it starts from, has trained the head of a target, or may have it from a folder. A
    stage without the target does not hand its head on."""
    if name == SCRATCH:
        return False
    if name not in stages:
        return True
    stage = stages[name]
    entry = next((entry for entry in stage.model.get("reconstruction") or [] if entry.get("name") == target), None)
    if entry is None:
        return False
    trained = bool(entry.get("weight", 1.0)) and "heads" in stage.trained_components
    return trained or _was_trained(stages, stage.init, target)
