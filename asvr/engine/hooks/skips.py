"""Names the samples of skipped steps, and ends a run with too many of them."""

import torch
from mmengine.hooks import Hook

from asvr.base.distributed import gather, is_main_process
from asvr.base.log import logger
from asvr.engine.parallel import unwrap
from asvr.registry import HOOKS


@HOOKS.register_module()
class SkipHook(Hook):
    """Logs the steps that were skipped because a loss or a gradient was not finite, and ends a run with too many.

    For each log interval it logs the skipped steps with their losses and samples, see
    `asvr.engine.optim.AutocastOptimWrapper`.

    interval: steps between two checks, since each check waits for the device. limit: the most skipped steps of a stage.
    With more, a checkpoint is written and the run ends with a ``ValueError``. The stage then only goes on with a higher
    limit. If all steps of a stage were skipped, it ends in the same way, since it has learned nothing.
    """

    def __init__(self, *, stage: str, interval: int, limit: int):
        self.stage, self.interval, self.limit = stage, interval, limit
        self.count = 0
        self.steps: list[tuple] = []  # of the interval: step, samples, whether skipped, losses by name
        self.skipped: list[tuple[int, list[str], list[str]]] = []  # of the interval: step, samples, losses not finite

    def state_dict(self) -> dict:
        self._look()
        everyone = gather(self.skipped)  # the same steps in all processes, each with its own samples
        skipped = [
            (own[0][0], [s for _, samples, _ in own for s in samples], [name for *_, losses in own for name in losses])
            for own in zip(*everyone, strict=True)
        ]
        return dict(count=self.count, skipped=skipped)

    def load_state_dict(self, state: dict) -> None:
        self.count = state["count"]
        self.skipped = []
        for step, samples, *losses in state["skipped"]:  # checkpoints of 0.1.0 have no losses
            own = (samples, losses[0] if losses else []) if is_main_process() else ([], [])
            self.skipped.append((step, *own))

    def before_train(self, runner) -> None:
        self._stop_above_limit(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        samples = [sample for batch in data_batch for sample in batch.sample_ids]
        losses = {name: outputs[name] for name in unwrap(runner.model).weights() if name in (outputs or {})}
        self.steps.append((runner.iter, samples, runner.optim_wrapper.skipped, losses))
        if runner.iter % self.interval == 0 or runner.iter == runner.max_iters:
            self._look()
            self._name()
            self._stop_above_limit(runner)

    def _look(self) -> None:
        if self.steps:
            flags = torch.stack([skipped for _, _, skipped, _ in self.steps]).tolist()
            for (step, samples, _, losses), skipped in zip(self.steps, flags, strict=True):
                if skipped:
                    wrong = [name for name, loss in losses.items() if not loss.isfinite().all()]
                    self.skipped.append((step, samples, wrong))
            self.steps = []

    def _name(self) -> None:
        for step, samples, losses in self.skipped:  # the steps are the same on all ranks; each rank has its own samples
            samples, losses = ([item for own in gather(part) for item in own] for part in (samples, losses))
            logger.warning(
                "%s, step %d: skipped, since %s was not finite; its samples: %s",
                self.stage,
                step,
                " and ".join(f"the loss {name}" for name in dict.fromkeys(losses)) or "a gradient",
                ", ".join(dict.fromkeys(samples)),
            )
        self.count += len(self.skipped)
        self.skipped = []

    def _stop_above_limit(self, runner) -> None:
        if self.count >= runner.max_iters:
            runner.train_loop.stop = ValueError(
                f"stage {self.stage}: all {self.count} steps were skipped, since a loss or a gradient was not finite: "
                "nothing was learned. The log names the losses and the samples: correct the loss, the data or the "
                "learning rate, and train the stage from its start"
            )
        elif self.count > self.limit:
            runner.train_loop.stop = ValueError(
                f"stage {self.stage}: {self.count} steps were skipped, a loss or a gradient was not finite: stopped "
                f"at step {runner.iter}, whose checkpoint is kept. The log names the samples: correct them or lower "
                "the learning rate and train the stage from its start, or go on with runtime.max_skipped above "
                f"{self.limit}"
            )
