"""Saves checkpoints at intervals, at the end of a stage, and where a run is stopped."""

from pathlib import Path

from mmengine.hooks import Hook

from asvr.engine import checkpoint
from asvr.registry import HOOKS


@HOOKS.register_module()
class CheckpointHook(Hook):
    """folder: where checkpoints go. interval: optimisation steps between them. keep: how many to keep.
    meta: what each ``checkpoint.json`` says besides the step (stage, configuration, frozen weights)."""

    priority = "VERY_LOW"  # after the schedule has moved, so that the saved state is the next step's

    def __init__(self, *, folder: str, interval: int, keep: int, meta: dict):
        if interval < 1 or keep < 1:
            raise ValueError(
                f"runtime.checkpoint_interval={interval} and runtime.keep_checkpoints={keep} must be at least 1"
            )
        self.folder, self.interval, self.keep, self.meta = Path(folder), interval, keep, meta

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        last = runner.iter == runner.max_iters or runner.train_loop.stop is not None
        if runner.iter % self.interval == 0 or last:
            self.save(runner)

    def save(self, runner) -> None:
        state = dict(
            optimizer=runner.optim_wrapper.optimizer.state_dict(),
            schedulers=[scheduler.state_dict() for scheduler in runner.param_schedulers],
            hooks={type(h).__name__: h.state_dict() for h in runner.hooks if hasattr(h, "state_dict")},
            random=checkpoint.random_state(),
        )
        checkpoint.save(
            self.folder / f"{checkpoint.PREFIX}{runner.iter:08d}",
            model=runner.model,
            state=state,
            meta=dict(self.meta, step=runner.iter),
        )
        checkpoint.prune(self.folder, self.keep)
