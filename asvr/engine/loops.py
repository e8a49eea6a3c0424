"""The training loop. One iteration is one optimisation step."""

import time

from mmengine.runner import BaseLoop
from torch import Tensor

from asvr.base.compat import end_workers
from asvr.base.distributed import get_world_size
from asvr.base.interruption import Interrupted, postponed, waiting
from asvr.base.ranges import named_range
from asvr.data.batch import Batch
from asvr.data.workers import WorkerFailed, naming_workers
from asvr.engine.parallel import unwrap
from asvr.registry import LOOPS


@LOOPS.register_module()
class StepLoop(BaseLoop):
    """Runs ``steps`` optimisation steps. An item of the loader is one step, a list of micro-batches.

    MMEngine's own loop makes one step for each micro-batch. On resume, it reads and drops every batch that was used
    already. This loop moves the sampler to its position instead (``iter`` is set before ``run``).

    stop: the error that ends the run after the current step, when its checkpoint is written. A hook may set it. It is
    also set if a worker dies or hangs, or if a signal comes during a long wait for samples.
    """

    def __init__(self, runner, dataloader, steps: int):
        super().__init__(runner, dataloader)
        self._max_iters = steps
        self._iter = 0
        self.data_time = 0.0
        self.window: list[Batch] = []
        self.stop: BaseException | None = None

    @property
    def max_iters(self) -> int:
        return self._max_iters

    @property
    def max_epochs(self) -> int:
        return 1

    @property
    def iter(self) -> int:
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = value

    @property
    def epoch(self) -> int:
        return 0

    @postponed()
    def run(self):
        runner = self.runner
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        runner.model.train()
        try:
            if self._goes_on():
                self._run_steps()
        except BaseException:
            for hook in runner.hooks:
                if hasattr(hook, "abandon"):
                    hook.abandon()
            raise
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        if self.stop is not None:
            raise self.stop
        return runner.model

    def _goes_on(self) -> bool:
        return self._iter < self._max_iters and self.stop is None

    def _run_steps(self) -> None:
        self.dataloader.batch_sampler.seek(self._iter * self.dataloader.batch_sampler.size)
        batches = iter(self.dataloader)
        try:
            with naming_workers(self.dataloader):
                while self._goes_on():
                    self.run_iter(batches)
        finally:
            end_workers(batches)

    def run_iter(self, batches) -> None:
        start = time.perf_counter()
        try:
            with naming_workers(self.dataloader), waiting(), named_range("data"):
                self.window = next(batches)
        except (WorkerFailed, Interrupted) as error:
            if get_world_size() > 1:  # the other processes are in a step already, and cannot end it without this one
                raise
            self.stop = error
            return
        self.data_time = time.perf_counter() - start
        self.runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=self.window)
        unwrap(self.runner.model).set_progress(self._iter / max(1, self._max_iters - 1))
        logs: dict[str, Tensor] = self.runner.model.train_step(self.window, self.runner.optim_wrapper)
        self._iter += 1
        self.runner.call_hook("after_train_iter", batch_idx=self._iter - 1, data_batch=self.window, outputs=logs)
