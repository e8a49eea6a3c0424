"""Profiles some steps of a stage. Writes a trace, a table of operations, and a snapshot of the GPU's memory."""

from pathlib import Path

import torch
from mmengine.hooks import Hook
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from asvr.base.disk import naming
from asvr.base.distributed import get_rank
from asvr.base.log import logger
from asvr.engine.parallel import unwrap
from asvr.registry import HOOKS

ROWS = 50  # the most rows of the table
EVENTS = 1_000_000  # the most allocations and frees that a snapshot keeps


@HOOKS.register_module()
class TraceHook(Hook):
    """Profiles the steps from ``first`` to ``last``, both included. Steps are counted from 1, as in the log.

    It writes ``<folder>/trace_rank<r>.json``, for https://ui.perfetto.dev or chrome://tracing, and
    ``<folder>/table_rank<r>.txt``, time and memory by operation and kernel. With ``memory``, on CUDA, it also writes
    ``<folder>/memory_rank<r>.pickle``, for https://pytorch.org/memory_viz.

    Each process writes its own files. The step before the first one warms up the profiler. Losses and weights are the
    same as without the profiler; the profiled steps are slower. stage: the stage's name, for the log.
    """

    priority = "VERY_HIGH"  # before other hooks, whose work is not part of a step

    def __init__(self, *, folder: str, stage: str, first: int, last: int, memory: bool = False):
        self.folder, self.stage = Path(folder), stage
        self.first, self.last, self.memory = first, last, memory
        self.profiler: profile | None = None
        self.range: record_function | None = None

    def before_train(self, runner) -> None:
        device = unwrap(runner.model).device
        if not runner.iter < self.first <= self.last <= runner.max_iters:
            logger.warning(
                "runtime.profile.steps=(%d, %d): stage %s now trains only the steps %d to %d, so it is not profiled",
                *(self.first, self.last, self.stage, runner.iter + 1, runner.max_iters),
            )
            self.first = 0  # no step has this number
            return
        if self.memory and device.type != "cuda":
            logger.warning("runtime.profile.memory is ignored on %s: only CUDA has memory snapshots", device.type)
            self.memory = False
        self.begin = max(self.first - 1, runner.iter + 1)  # the step that warms up, if there is one

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.first == 0:
            return
        step = runner.iter + 1
        if step == self.begin:
            self._start(unwrap(runner.model).device)
        if step == self.first and self.memory:
            torch.cuda.memory._record_memory_history(max_entries=EVENTS)
        if self.profiler is not None and step >= self.first:
            self.range = record_function(f"step_{step}").__enter__()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.profiler is None:
            return
        if self.range is not None:
            self.range.__exit__(None, None, None)
            self.range = None
        if runner.iter == self.last:
            self._write()
        else:
            self.profiler.step()

    def abandon(self) -> None:
        """Stop the profiler without writing files. The loop calls this if an error or a signal ends the stage."""
        if self.profiler is not None:
            self._stop()

    def after_train(self, runner) -> None:
        if self.profiler is not None:  # a signal came before the last step
            logger.warning("stage %s ended before the last profiled step: no profile is written", self.stage)
            self._stop()

    def _start(self, device: torch.device) -> None:
        kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        warmup, active = self.first - self.begin, self.last - self.first + 1
        self.profiler = profile(
            activities=kinds,
            schedule=schedule(wait=0, warmup=warmup, active=active, repeat=1),
            record_shapes=True,
            profile_memory=True,
        )
        self.profiler.start()

    def _write(self) -> None:
        profiler, rank = self.profiler, get_rank()
        trace, table = self.folder / f"trace_rank{rank}.json", self.folder / f"table_rank{rank}.txt"
        self.folder.mkdir(parents=True, exist_ok=True)
        with naming(self.folder):
            if self.memory:
                snapshot = self.folder / f"memory_rank{rank}.pickle"
                torch.cuda.memory._dump_snapshot(str(snapshot))
                logger.info("memory snapshot: %s, open it at https://pytorch.org/memory_viz", snapshot)
            self._stop()
            profiler.export_chrome_trace(str(trace))
            sorted_by = f"self_{'device' if ProfilerActivity.CUDA in profiler.activities else 'cpu'}_time_total"
            table.write_text(profiler.key_averages().table(sort_by=sorted_by, row_limit=ROWS), encoding="utf-8")
        logger.info(
            "profile of steps %d to %d: %s, open it at https://ui.perfetto.dev; the table of operations is %s",
            *(self.first, self.last, trace, table),
        )

    def _stop(self) -> None:
        self.profiler.stop()
        self.profiler = None
        if self.memory:
            torch.cuda.memory._record_memory_history(enabled=None)
