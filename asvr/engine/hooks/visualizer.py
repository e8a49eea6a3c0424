"""Sends what a run logs to the trackers that ``visualizer`` of a config names."""

import numpy as np
from mmengine.hooks import Hook

from asvr.base.distributed import is_main_process
from asvr.engine.trackers import Trackers
from asvr.recipe.recipe import Stage
from asvr.registry import HOOKS

NOT_SCALARS = ("step", "steps")


def scalars(record: dict, prefix: str) -> dict[str, float]:
    """The numbers of a record, those in its dicts and lists too: ``{"acc": [1.0, 0.5]}`` -> ``<prefix>/acc/0``, ... A
    list of lists is a map, which is left out."""
    found = {}
    for key, value in record.items():
        if isinstance(value, dict):
            found |= scalars(value, f"{prefix}/{key}")
        elif isinstance(value, list | tuple) and not any(isinstance(item, list | dict) for item in value):
            found |= scalars(dict(enumerate(value)), f"{prefix}/{key}")
        elif isinstance(value, int | float) and key not in NOT_SCALARS:
            found[f"{prefix}/{key}"] = value
    return found


def log_evaluation(
    trackers: Trackers, stage: Stage, kind: str, result: dict, images: dict[str, np.ndarray], step: int
) -> None:
    """The result of an evaluation, at the last step of its stage, in the run of the stage. kind: what its names begin
    with."""
    trackers.open(stage, step)
    trackers.scalars(scalars(result, kind), step)
    for name, image in images.items():
        trackers.image(f"{kind}/{name}", image, step)
    trackers.close()


@HOOKS.register_module()
class VisualizerHook(Hook):
    """Sends what is logged to the trackers of ``visualizer``: ``train/loss``, ``validation/accuracy`` and so on.

    The images of a validation are sent too.

    A stage that goes on logs the steps behind its checkpoint again: of the earlier ones, a local file drops the lines
    and TensorBoard shows none; the other trackers get them twice.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, *, trackers: Trackers, stage: Stage):
        self.trackers, self.stage = trackers, stage

    def before_train(self, runner) -> None:
        if is_main_process():
            self.trackers.open(self.stage, runner.iter)

    def after_log(self, runner, kind: str, record: dict) -> None:
        self.trackers.scalars(scalars(record, kind), record["step"])

    def after_images(self, runner, kind: str, images: dict[str, np.ndarray]) -> None:
        for name, image in images.items():
            self.trackers.image(f"{kind}/{name}", image, runner.iter)

    def after_train(self, runner) -> None:
        self.abandon()

    def abandon(self) -> None:
        if is_main_process():
            self.trackers.close()
