"""Saves checkpoints at intervals and at the end of a stage."""

from pathlib import Path

from mmengine.hooks import Hook

from asvr.engine import checkpoint
from asvr.engine.parallel import bare
from asvr.engine.processes import gather, is_main_process
from asvr.models.shards import whole_state
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
        if runner.iter % self.interval == 0 or runner.iter == runner.max_iters:
            self.save(runner)

    def save(self, runner) -> None:
        random_states = gather(checkpoint.random_state())
        state = dict(
            optimizer=whole_state(runner.optim_wrapper.optimizer.state_dict(), keep=is_main_process()),
            schedulers=[scheduler.state_dict() for scheduler in runner.param_schedulers],
            hooks={type(h).__name__: h.state_dict() for h in runner.hooks if hasattr(h, "state_dict")},
            random=random_states[0],
            random_of_others=random_states[1:],
        )
        checkpoint.save(
            self.folder / f"{checkpoint.PREFIX}{runner.iter:08d}",
            model=bare(runner.model),
            state=state,
            meta=dict(self.meta, step=runner.iter),
        )
        if is_main_process():
            checkpoint.prune(self.folder, self.keep)
