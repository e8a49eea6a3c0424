"""Sends the logs of a run to the trackers that ``visualizer`` of a config names."""

import re

import numpy as np
from mmengine.hooks import Hook

from asvr.base.distributed import is_main_process
from asvr.engine.trackers import Trackers
from asvr.recipe.recipe import Stage
from asvr.registry import HOOKS

NOT_SCALARS = ("step", "steps")


def scalars(record: dict, prefix: str) -> dict[str, float]:
    """The numbers of a record, also those in its dicts and lists: ``{"acc": [1.0, 0.5]}`` -> ``<prefix>/acc/0``, ...

    Lists of lists are left out."""
    found = {}
    for key, value in record.items():
        if isinstance(value, dict):
            found |= scalars(value, f"{prefix}/{key}")
        elif isinstance(value, list | tuple) and not any(isinstance(item, list | dict) for item in value):
            found |= scalars(dict(enumerate(value)), f"{prefix}/{key}")
        elif isinstance(value, int | float) and key not in NOT_SCALARS:
            found[f"{prefix}/{key}"] = value
    return found


def charts(result: dict, kind: str) -> dict[str, float]:
    """The numbers of an evaluation that are worth a chart. kind: the first part of their names.

    The sizes of kinds of questions are the same each time. They, the refused questions and the seconds are in
    ``results.json`` only."""
    left_out = (f"{kind}/refused", f"{kind}/seconds")
    sizes = re.compile(rf"{re.escape(kind)}/by_kind/.*/(right|total)")
    found = scalars(result, kind)
    return {name: value for name, value in found.items() if name not in left_out and not sizes.fullmatch(name)}


def log_evaluation(
    trackers: Trackers, stage: Stage, kind: str, result: dict, images: dict[str, np.ndarray], step: int
) -> None:
    """Log the result of an evaluation to the run of its stage, at the stage's last step. kind: the first part of its
    names."""
    trackers.begin(stage, step)
    trackers.scalars(charts(result, kind), step)
    for name, image in images.items():
        trackers.image(f"{kind}/{name}", image, step)
    trackers.close()


@HOOKS.register_module()
class VisualizerHook(Hook):
    """Sends all logs to the trackers of ``visualizer``: ``train/loss``, ``validation/accuracy`` and so on.

    The images of a validation are sent too. A stage that goes on logs the steps after its checkpoint again. A local
    file then drops the earlier lines of these steps, and TensorBoard hides them. Other trackers get them twice.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, *, trackers: Trackers, stage: Stage):
        self.trackers, self.stage = trackers, stage

    def before_train(self, runner) -> None:
        if is_main_process():
            self.trackers.begin(self.stage, runner.iter)

    def after_log(self, runner, kind: str, record: dict) -> None:
        numbers = scalars(record, kind) if kind == "train" else charts(record, kind)
        self.trackers.scalars(numbers, record["step"])

    def after_images(self, runner, kind: str, images: dict[str, np.ndarray]) -> None:
        for name, image in images.items():
            self.trackers.image(f"{kind}/{name}", image, runner.iter)

    def after_train(self, runner) -> None:
        self.abandon()

    def abandon(self) -> None:
        if is_main_process():
            self.trackers.close()
