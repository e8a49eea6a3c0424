"""Validates the model while a stage trains, and keeps the best weights."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from mmengine.dist import get_world_size
from mmengine.hooks import Hook

from asvr.base.disk import naming
from asvr.base.distributed import is_main_process
from asvr.base.interruption import Interrupted, at_once
from asvr.base.log import logger
from asvr.engine import checkpoint
from asvr.engine.hooks.progress import forget_after
from asvr.engine.parallel import answering, unwrap
from asvr.engine.random_state import random_state, set_random_state
from asvr.evaluation.accuracy import report
from asvr.evaluation.metrics import ACCURACY, require_best
from asvr.registry import HOOKS

BEST = "best"


@HOOKS.register_module()
class ValidationHook(Hook):
    """Validates every ``interval`` optimisation steps and at the end of a stage, and keeps the best weights.

    validate: a function: the model -> the result of `asvr.evaluation.accuracy.evaluate`, with sample images for
    trackers in ``images``, by name. It gets the model that trains, in eval mode for that time. Random states are
    restored afterwards, so that training is the same with and without validation. With several processes, each answers
    its share of the questions. file: gets one JSON object for each validation: stage, step, steps and the result. by:
    the name of the number that chooses the best weights; None: no best weights are kept. folder: ``<folder>/best``
    holds the weights with the highest value so far; if values are equal, the first. meta: see
    `asvr.engine.hooks.CheckpointHook`. A signal ends a validation; several processes first end their present batch of
    questions. The resumed run begins with this validation.
    """

    priority = "LOW"  # after the log line of the step, before the checkpoint, which holds the best value so far

    def __init__(
        self, *, validate: Callable, file: str, folder: str, stage: str, interval: int, meta: dict, by: str | None
    ):
        self.validate, self.file, self.folder = validate, Path(file), Path(folder)
        self.stage, self.interval, self.meta, self.by = stage, interval, meta, by
        self.best: float | None = None
        self.pending = False  # whether the validation of the present step has not ended yet

    def state_dict(self) -> dict:
        return dict(best=self.best, pending=self.pending, by=self.by)

    def load_state_dict(self, state: dict) -> None:
        self.best, self.pending = state["best"], state["pending"]
        if state.get("by", ACCURACY) != self.by:  # values of two metrics cannot be compared
            self.best = None

    def before_train(self, runner) -> None:
        if is_main_process():
            forget_after(self.file, self.stage, runner.iter - 1 if self.pending else runner.iter)
        if self.pending:
            self._validate(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter % self.interval == 0 or runner.iter == runner.max_iters:
            self._validate(runner)

    def _validate(self, runner) -> None:
        before = random_state()
        self.pending = True
        try:
            with answering(runner.model) as model, at_once() if get_world_size() == 1 else nullcontext():
                result = self.validate(model)
        except Interrupted as stop:
            runner.train_loop.stop = runner.train_loop.stop or stop
            return
        finally:
            runner.model.train()
            set_random_state(before)
        result.pop("examples")
        images = result.pop("images")
        record = dict(stage=self.stage, step=runner.iter, steps=runner.max_iters, **result)
        if is_main_process():
            with naming(self.file), open(self.file, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
            runner.call_hook("after_log", kind="validation", record=record)
            runner.call_hook("after_images", kind="validation", images=images)
        logger.info("%s %d/%d, validation: %s", self.stage, runner.iter, runner.max_iters, report(result))
        if self.by is not None:
            self._keep_best(runner, result)
        self.pending = False

    def _keep_best(self, runner, result: dict) -> None:
        try:
            require_best(self.by, result)
        except ValueError as error:  # for example, a benchmark failed; training must go on
            logger.warning("step %d is not compared with the best one: %s", runner.iter, error)
            return
        if self.best is None or result[self.by] > self.best:
            self.best = result[self.by]
            meta = {self.by: self.best} | dict(self.meta, step=runner.iter)
            checkpoint.save(self.folder / BEST, model=unwrap(runner.model), state={}, meta=meta)
