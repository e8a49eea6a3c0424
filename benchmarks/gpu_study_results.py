"""What ``benchmarks/gpu_study.py`` keeps of a study's runs, and what it tells of them."""

import json
import shutil
import statistics
from pathlib import Path

from gpu_study_schedule import PASSED, Job, say
from mmengine.config import Config

from asvr.engine.finished import DONE
from asvr.studies.report import write_report
from asvr.studies.results import collect_finished

KEPT = ("results.json", "metrics.jsonl", "config.py", "console.log")


class Results:
    """The results of a study in ``out``, laid out as in the folder of `asvr study`."""

    def __init__(self, study: Config, name: str, out: Path, jobs: list[Job]):
        self.study, self.name, self.out, self.jobs = study, name, out, jobs
        self.found: dict = {}  # what the report has found
        self.reported: list[str] = []  # the runs in it
        self.problem: str | None = None  # why there is no report

    def keep(self, job: Job) -> None:
        """Copy what a run has found, remove the rest, and write the report if its seed is complete."""
        folder = self.out / job.run.arm / f"seed_{job.run.seed}"
        names = [*KEPT, f"*/{DONE}", "*/answers.jsonl"] if job.state == PASSED else [job.log.name]
        for file in [file for name in names for file in job.run.work_dir.glob(name)]:
            place = folder / file.relative_to(job.run.work_dir)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
        shutil.rmtree(job.run.work_dir)
        if job.run.seed in self.complete:
            self.report()
        self.tell()

    @property
    def complete(self) -> list[int]:
        left = {job.run.seed for job in self.jobs if job.state != PASSED}
        return [seed for seed in self.study.seeds if seed not in left]

    def report(self) -> None:
        """Of all runs that have a result, if there is one of the baseline and of another arm with the same seed."""
        passed = [job.name for job in self.jobs if job.state == PASSED]
        if passed == self.reported:
            return
        try:
            found, missing = collect_finished(self.study, self.out)
            write_report(self.study, found, self.out, name=self.name, missing=missing, starts=[])
        except Exception as error:  # whatever is wrong with a result: the other runs go on
            self.problem = f"{type(error).__name__}: {error}"
            say(f"no report: {self.problem}")
            return
        self.found = json.loads((self.out / "report.json").read_text(encoding="utf-8"))
        self.reported, self.problem = passed, None
        say(f"written: {self.out / 'report.md'}, report.json")

    def tell(self) -> None:
        states = {job.name: job.state + (f": {job.reason}" if job.reason else "") for job in self.jobs}
        seconds = [job.seconds for job in self.jobs if job.state == PASSED]
        figures = dict(complete_seeds=self.complete, runs=states)
        if seconds:
            figures |= dict(seconds_of_a_run=round(statistics.mean(seconds), 1))
            figures |= dict(runs_at_once=max(job.together for job in self.jobs))
        for arm, own in self.found.get("arms", {}).items():
            figures[arm] = {name: _shown(group) for name, group in own["groups"].items()}
        if self.problem:
            figures["no_report"] = self.problem
        print("FIGURES", json.dumps(figures), flush=True)


def _shown(group: dict) -> str:
    """Right answers in %, and the difference from the baseline in points with its interval."""
    text = f"{100 * group['share']:.1f}"
    if group.get("low") is not None:
        text += f", {100 * group['gain']:+.1f} ({100 * group['low']:+.1f} to {100 * group['high']:+.1f})"
    return text
