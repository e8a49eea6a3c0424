"""How ``benchmarks/gpu_study.py`` starts the runs of a study, so that they end in time."""

import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_list import ROOT, end_with_parent

if TYPE_CHECKING:  # it loads torch
    from asvr.studies.results import Run

POLL = 0.2  # seconds between looks
MARGIN = 1.15  # of the estimated seconds of a run
OVER = "the time was over"
PASSED, FAILED, CUT, WAITING = "passed", "failed", "cut off", "not begun"


@dataclass
class Job:
    """One run of the study. together: the most runs that were under way beside it, with itself."""

    run: "Run"
    command: list[str]
    log: Path
    state: str = WAITING
    reason: str | None = None
    process: subprocess.Popen | None = None
    begin: float = 0.0
    seconds: float | None = None
    together: int = 0

    @property
    def name(self) -> str:
        return f"{self.run.arm}, seed {self.run.seed}"

    def start(self, env: dict) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # A session of its own, so that it ends with its workers.
        own = dict(cwd=ROOT, env=env, preexec_fn=end_with_parent, start_new_session=True)
        with open(self.log, "w", encoding="utf-8") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *self.command],
                **own,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self.state, self.begin = "running", time.monotonic()
        say(f"{self.name}: begins")

    def close(self, state: str, reason: str | None = None) -> None:
        self.state, self.reason, self.seconds = state, reason, round(time.monotonic() - self.begin, 1)
        say(f"{self.name}: {state} after {self.seconds} s{f': {reason}' if reason else ''}")


class Schedule:
    """Starts jobs in order, ``at_once`` of them at the same time, until all have ended or the time is over.

    ready: whether several may run before the first has ended. ended: called with each job that has ended.
    """

    def __init__(
        self, jobs: list[Job], *, at_once: int, deadline: float, ready: Callable[[], bool], ended: Callable[[Job], None]
    ):
        self.jobs, self.at_once, self.deadline = jobs, at_once, deadline
        self.ready, self.ended = ready, ended
        self.stopped: str | None = None  # why, if from outside
        self.env = os.environ | dict(OMP_NUM_THREADS=str(max(1, (os.cpu_count() or 1) // at_once)))

    @property
    def under_way(self) -> list[Job]:
        return [job for job in self.jobs if job.process is not None and job.seconds is None]

    @property
    def waiting(self) -> list[Job]:
        return [job for job in self.jobs if job.process is None]

    def go(self) -> None:
        while True:
            while self.stopped is None and self._next_fits():
                self.waiting[0].start(self.env)
                for job in self.under_way:
                    job.together = max(job.together, len(self.under_way))
            if not self.under_way:
                break
            time.sleep(POLL)
            over = self.stopped or (OVER if self.left <= 0 else None)
            codes = [(job, job.process.poll()) for job in self.under_way]
            running = [job for job, code in codes if code is None]
            if over:
                for job in running:  # all at once: each takes a while to leave the GPU
                    os.killpg(job.process.pid, signal.SIGKILL)
            for job, code in codes:
                if code is None and over:
                    job.process.wait()
                if code is not None or over:
                    job.close(*_end(code, over, job.log))
                    self.ended(job)
        needed, left = self.needed, self.left
        for job in self.waiting:
            short = OVER if left <= 0 else f"its seed needs about {needed:.0f} s, and {left:.0f} s were left"
            job.reason = self.stopped or short

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    @property
    def needed(self) -> float:
        """Seconds for the rest of the next run's seed, by the runs that have ended. 0 if there are none of either.

        With more runs at the same time than those had, each is taken to be slower by as much."""
        passed = [job for job in self.jobs if job.state == PASSED]
        if not passed or not self.waiting:
            return 0.0
        rest = sum(job.run.seed == self.waiting[0].run.seed for job in self.waiting)
        together = min(self.at_once, len(self.under_way) + rest)
        slower = max(1.0, together / statistics.mean(job.together for job in passed))
        rounds = math.ceil(rest / max(1, self.at_once - len(self.under_way)))
        return MARGIN * statistics.mean(job.seconds for job in passed) * slower * rounds

    def _next_fits(self) -> bool:
        if not self.waiting or len(self.under_way) >= self.at_once:
            return False
        if any(job.state == PASSED for job in self.jobs) or not self.under_way:
            return 0 < self.left and self.needed <= self.left
        return self.ready() and self.waiting[0].run.seed == self.under_way[0].run.seed


def _end(code: int | None, over: str | None, log: Path) -> tuple[str, str | None]:
    """The state of a run that has ended, and the reason. code: None if it was ended here. over: why all are ended."""
    if code == 0:
        return PASSED, None
    if over is not None:  # a signal to a whole group ends the runs too
        return CUT, over
    if code < 0:
        return FAILED, f"killed by {signal.Signals(-code).name}"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return FAILED, f"exit code {code}: {(lines or [''])[-1][:300]}"


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
