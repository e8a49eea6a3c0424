"""Asks questions while a stage trains, and keeps the weights that answered best."""

import json
from collections.abc import Callable
from pathlib import Path

from mmengine.hooks import Hook

from asvr.engine import checkpoint
from asvr.engine.hooks.progress import forget_after
from asvr.engine.log import logger
from asvr.engine.parallel import bare, gathered
from asvr.engine.processes import from_main, is_main_process
from asvr.evaluation.accuracy import report
from asvr.registry import HOOKS

BEST = "best"


@HOOKS.register_module()
class ValidationHook(Hook):
    """Every ``interval`` optimisation steps and at the end of a stage.

    validate: the model -> the result of `asvr.evaluation.accuracy.evaluate`. The model is the one that trains, in eval
    mode meanwhile; random states are put back, so that training is the same with and without. file: gets one JSON
    object a validation: stage, step, steps and the result. folder: ``<folder>/best`` holds the weights of the highest
    accuracy so far, of equal ones the first. meta: see `asvr.engine.hooks.CheckpointHook`.
    """

    priority = "LOW"  # behind the log line of the step, in front of the checkpoint, which holds what is best so far

    def __init__(self, *, validate: Callable, file: str, folder: str, stage: str, interval: int, meta: dict):
        self.validate, self.file, self.folder = validate, Path(file), Path(folder)
        self.stage, self.interval, self.meta = stage, interval, meta
        self.best: float | None = None

    def state_dict(self) -> dict:
        return dict(best=self.best)

    def load_state_dict(self, state: dict) -> None:
        self.best = state["best"]

    def before_train(self, runner) -> None:
        if is_main_process():
            forget_after(self.file, self.stage, runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter % self.interval == 0 or runner.iter == runner.max_iters:
            self._validate(runner)

    def _validate(self, runner) -> None:
        before = checkpoint.random_state()
        try:
            with gathered(runner.model) as model:
                result = from_main(self.validate(model) if is_main_process() else None)
        finally:
            runner.model.train()
            checkpoint.set_random_state(before)
        result.pop("examples")
        record = dict(stage=self.stage, step=runner.iter, steps=runner.max_iters, **result)
        if is_main_process():
            with open(self.file, "a") as stream:
                stream.write(json.dumps(record) + "\n")
        logger.info("%s %d/%d, validation: %s", self.stage, runner.iter, runner.max_iters, report(result))
        if self.best is None or result["accuracy"] > self.best:
            self.best = result["accuracy"]
            meta = dict(self.meta, step=runner.iter, accuracy=self.best)
            checkpoint.save(self.folder / BEST, model=bare(runner.model), state={}, meta=meta)
