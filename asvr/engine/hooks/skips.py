"""Names the samples of skipped steps, and ends a run with too many of them."""

import torch
from mmengine.hooks import Hook

from asvr.base.distributed import gather, is_main_process
from asvr.base.log import logger
from asvr.registry import HOOKS


@HOOKS.register_module()
class SkipHook(Hook):
    """Logs the steps that were skipped because a loss or a gradient was not finite, and ends a run with too many.

    For each log interval it logs the skipped steps with their samples, see `asvr.engine.optim.AutocastOptimWrapper`.

    interval: steps between two checks, since each check waits for the device. limit: the most skipped steps of a stage.
    With more, a checkpoint is written and the run ends with a ``ValueError``. The stage then only goes on with a higher
    limit.
    """

    def __init__(self, *, stage: str, interval: int, limit: int):
        self.stage, self.interval, self.limit = stage, interval, limit
        self.count = 0
        self.steps: list[tuple[int, list[str], torch.Tensor]] = []  # of the interval: step, samples, whether skipped
        self.skipped: list[tuple[int, list[str]]] = []  # of the interval: steps that are known to be skipped

    def state_dict(self) -> dict:
        self._look()
        everyone = gather(self.skipped)  # the same steps in all processes, each with its own samples
        skipped = [(own[0][0], [s for _, samples in own for s in samples]) for own in zip(*everyone, strict=True)]
        return dict(count=self.count, skipped=skipped)

    def load_state_dict(self, state: dict) -> None:
        self.count = state["count"]
        self.skipped = [(step, samples if is_main_process() else []) for step, samples in state["skipped"]]

    def before_train(self, runner) -> None:
        self._stop_above_limit(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        samples = [sample for batch in data_batch for sample in batch.sample_ids]
        self.steps.append((runner.iter, samples, runner.optim_wrapper.skipped))
        if runner.iter % self.interval == 0 or runner.iter == runner.max_iters:
            self._look()
            self._name()
            self._stop_above_limit(runner)

    def _look(self) -> None:
        if self.steps:
            flags = torch.stack([skipped for *_, skipped in self.steps]).tolist()
            self.skipped += [step[:2] for step, skipped in zip(self.steps, flags, strict=True) if skipped]
            self.steps = []

    def _name(self) -> None:
        for step, samples in self.skipped:  # the steps are the same on all ranks; each rank has its own samples
            samples = [sample for own in gather(samples) for sample in own]
            logger.warning(
                "%s, step %d: skipped, since a loss or a gradient was not finite; its samples: %s",
                self.stage,
                step,
                ", ".join(dict.fromkeys(samples)),
            )
        self.count += len(self.skipped)
        self.skipped = []

    def _stop_above_limit(self, runner) -> None:
        if self.count > self.limit:
            runner.train_loop.stop = ValueError(
                f"stage {self.stage}: {self.count} steps were skipped, a loss or a gradient was not finite: stopped "
                f"at step {runner.iter}, whose checkpoint is kept. The log names the samples: correct them or lower "
                "the learning rate and train the stage from its start, or go on with runtime.max_skipped above "
                f"{self.limit}"
            )
