"""Saves checkpoints at intervals, at the end of a stage, and when a run is stopped."""

from pathlib import Path

from mmengine.hooks import Hook
from mmengine.runner.priority import get_priority

from asvr.base.distributed import get_world_size
from asvr.engine.parallel import unwrap
from asvr.engine.parallel_checks import check_buffers
from asvr.engine.random_state import random_states
from asvr.engine.saver import Saver
from asvr.registry import HOOKS


def stateful(hooks: list[Hook]) -> dict[str, Hook]:
    """The hooks with a ``state_dict()``, which checkpoints hold, by the name of their class.

    A second hook of a class has a number in its name. Raises ``ValueError`` for a hook that runs after the checkpoint
    of a step.
    """
    found: dict[str, Hook] = {}
    for hook in hooks:
        if hasattr(hook, "state_dict"):
            name = type(hook).__name__
            if get_priority(hook.priority) > get_priority(CheckpointHook.priority):
                raise ValueError(
                    f"custom_hooks: {name} has a state and priority {hook.priority!r}, so it runs after the "
                    "checkpoint, which would hold the state of the step before: give it priority "
                    f"{CheckpointHook.priority!r} or higher"
                )
            count = sum(type(other) is type(hook) for other in found.values())
            found[f"{name}.{count + 1}" if count else name] = hook
    return found


def _values(state: dict) -> dict:
    """A scheduler's state without methods. Some of MMEngine's schedulers have methods in it, and build them again."""
    return {key: value for key, value in state.items() if not callable(value)}


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Writes checkpoints at an interval and at the end of a stage, and removes old ones.

    folder: the folder of the checkpoints. interval: optimisation steps between two of them. keep: the number of
    checkpoints to keep. meta: the content of ``checkpoint.json`` besides the step (stage, configuration, frozen
    weights). asynchronous: see `asvr.engine.saver.Saver`. An error in a save ends the run at a later step. The end of a
    stage waits for the last save.
    """

    priority = "VERY_LOW"  # after the schedule, so that the saved state is that of the next step

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
        if save or runner.iter == 1:  # most differences show at the first step
            check_buffers(unwrap(runner.model))
        if save:
            self.save(runner)

    def after_train(self, runner) -> None:
        if self.saved != runner.iter and get_world_size() == 1:  # it ended while it waited for the next samples
            self.save(runner)
        self.saver.close()

    def abandon(self) -> None:
        """The loop calls this if training has failed."""
        self.saver.abandon()

    def save(self, runner) -> None:
        state = dict(
            schedulers=[_values(scheduler.state_dict()) for scheduler in runner.param_schedulers],
            hooks={name: hook.state_dict() for name, hook in stateful(runner.hooks).items()},
            random=random_states(),
        )
        self.saved = runner.iter
        self.saver.save(
            runner.iter,
            model=unwrap(runner.model),
            optimizer=runner.optim_wrapper.optimizer,
            state=state,
            meta=self.meta,
        )
