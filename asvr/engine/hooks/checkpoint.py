"""Saves checkpoints at intervals, at the end of a stage, and where a run is stopped."""

from pathlib import Path

from mmengine.hooks import Hook

from asvr.base.distributed import get_world_size
from asvr.engine.parallel import bare, check_buffers
from asvr.engine.random_state import random_states
from asvr.engine.saver import Saver
from asvr.registry import HOOKS


@HOOKS.register_module()
class CheckpointHook(Hook):
    """folder: where checkpoints go. interval: optimisation steps between them. keep: how many to keep.
    meta: what each ``checkpoint.json`` says besides the step (stage, configuration, frozen weights).
    asynchronous: see `asvr.engine.saver.Saver`. What goes wrong in a save ends the run at a step after it; the end of
    a stage waits for the last one."""

    priority = "VERY_LOW"  # after the schedule has moved, so that the saved state is the next step's

    def __init__(self, *, folder: str, interval: int, keep: int, meta: dict, asynchronous: bool = True):
        if interval < 1 or keep < 1:
            raise ValueError(
                f"runtime.checkpoint_interval={interval} and runtime.keep_checkpoints={keep} must be at least 1"
            )
        self.interval, self.meta = interval, meta
        self.saver = Saver(folder=Path(folder), keep=keep, asynchronous=asynchronous)

    def before_train(self, runner) -> None:
        self.saved = runner.iter

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.saver.check()
        last = runner.iter == runner.max_iters or runner.train_loop.stop is not None
        save = runner.iter % self.interval == 0 or last
        if save or runner.iter == 1:  # the first step shows most of what differs
            check_buffers(bare(runner.model))
        if save:
            self.save(runner)

    def after_train(self, runner) -> None:
        if self.saved != runner.iter and get_world_size() == 1:  # it ended where it waited for the next samples
            self.save(runner)
        self.saver.close()

    def abandon(self) -> None:
        """Called where training has failed."""
        self.saver.abandon()

    def save(self, runner) -> None:
        state = dict(
            schedulers=[scheduler.state_dict() for scheduler in runner.param_schedulers],
            hooks={type(h).__name__: h.state_dict() for h in runner.hooks if hasattr(h, "state_dict")},
            random=random_states(),
        )
        self.saved = runner.iter
        self.saver.save(
            runner.iter, model=bare(runner.model), optimizer=runner.optim_wrapper.optimizer, state=state, meta=self.meta
        )
