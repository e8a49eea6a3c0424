"""Runs a study: trains every arm with every seed, and asks all of them the same questions.

out/
  report.json  report.md  *.png  tokenizers/<name>/  shared/<name>/  cache/
  <arm>/seed_<n>/ (a work dir of asvr train, as shared/<name>/ is)
"""

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from mmengine.config import Config

from asvr.base.log import logger, progress_bar
from asvr.studies.existing import require_same_arms, require_same_shared
from asvr.studies.processes import Processes
from asvr.studies.results import Run, asked_folder, runs, sighted
from asvr.studies.shared import finished_shared, require_fitting_starts
from asvr.studies.study_fields import needed
from asvr.studies.study_file import MODEL, arm_config, shared_config, shared_folder

CONSOLE = "console.log"
LOOK = 1.0  # seconds between two looks at the first run


def run_study(study: Config, out: Path, *, jobs: int = 1, arms: list[str] | None = None) -> list[str]:
    """Train and evaluate every arm with each of its seeds. Finished runs are kept, interrupted runs continue.

    Tokenizers and shared trainings come first. All arms of one seed run before the next seed, so a stopped study has
    complete seeds. jobs: the number of runs at the same time, see `threads_of_a_run`. arms: train only these, with what
    they use (default: all). Returns a message for each run that failed, also if its process was killed. The other runs
    are done anyway.

    Raises ``ValueError`` before the first run if an arm or a shared training was changed after it had run, see
    `require_same_arms`, or if an arm cannot start from the model that it names; later if a shared training fails.
    """
    require_same_shared(study, out)
    finished = finished_shared(study, out)
    require_same_arms(study, out)
    require_fitting_starts(study, out)
    used = {*study.tokenizers, *study.shared} if arms is None else needed(study, arms)
    for name, config in study.tokenizers.items():
        if name in used:
            _train_tokenizer(config, out / "tokenizers" / name)
    if missing := [name for name in study.shared if name in used and name not in finished]:
        _train_shared(study, missing, out)
        require_same_arms(study, out)  # a model that was gone may be another one now
    os.environ["OMP_NUM_THREADS"] = threads_of_a_run(jobs)  # for processes that start from now on
    return _train_arms([run for run in runs(study, out) if arms is None or run.arm in arms], study, out, jobs)


def _train_shared(study: Config, names: list[str], out: Path) -> None:
    """Train these shared trainings one after another: a later one may start from an earlier one."""
    with Processes() as processes, progress_bar(total=len(names), desc="shared", unit="run") as bar:
        for name in names:
            processes.start(name, _one_shared, study.to_dict(), name, out)
            [(_, problem)] = processes.ended()
            bar.update(1)
            message = f"shared {name!r}: {problem or 'done'} ({shared_folder(out, name) / CONSOLE})"
            if problem is not None:
                raise ValueError(f"{message}. No run can start from it: run the same command to try it again")
            logger.info(message)


def _train_arms(waiting: list[Run], study: Config, out: Path, jobs: int) -> list[str]:
    failed: list[str] = []
    if not waiting:
        return failed
    first, ahead = waiting[0], True  # the first run computes the features that all others read
    with Processes() as processes, progress_bar(total=len(waiting), desc="study", unit="run") as bar:
        while waiting or len(processes):
            ahead = ahead and not (first.work_dir / "metrics.jsonl").is_file()
            while waiting and len(processes) < (1 if ahead else jobs):
                run = waiting.pop(0)
                processes.start(run, _one, study.to_dict(), run, out)
            for run, problem in processes.ended(LOOK if ahead and jobs > 1 else None):
                ahead = False
                bar.update(1)
                message = f"{run.arm}, seed {run.seed}: {problem or 'done'} ({run.work_dir / CONSOLE})"
                logger.info(message)
                if problem is not None:
                    failed.append(message)
    return failed


def threads_of_a_run(jobs: int) -> str:
    """``OMP_NUM_THREADS`` of each run: its part of the cores, or what the user asks for, if that is fewer."""
    share, given = max(1, (os.cpu_count() or 1) // jobs), os.environ.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdecimal() else share  # OpenMP allows other forms, such as '4,2'
    return str(max(1, min(share, threads)))


def _train_tokenizer(config: str, work_dir: Path) -> None:
    if not (work_dir / "report.json").is_file():
        from asvr.tokenizer_training.run import run_config

        run_config(config, work_dir=work_dir, seed=0)


def _one(study: dict, run: Run, out: Path) -> str | None:
    """Do one run in a process of its own. Returns the error in one line, or None."""

    def work() -> None:
        from asvr.engine.run import run as train

        train(arm_config(Config(study), run.arm, run.seed, out), run.work_dir)

    return _logged(run.work_dir, work)


def _one_shared(study: dict, name: str, out: Path) -> str | None:
    """The same for a shared training, whose model is saved in the end."""
    work_dir = shared_folder(out, name)

    def work() -> None:
        from asvr.engine.run import run as train
        from asvr.loading import load

        train(shared_config(Config(study), name, out), work_dir)
        load(work_dir, device="cpu").save_pretrained(work_dir / MODEL)

    return _logged(work_dir, work)


def _logged(work_dir: Path, work: Callable[[], None]) -> str | None:
    """Do ``work``, with what it prints in a file of ``work_dir``. Returns its error in one line, or None."""
    work_dir.mkdir(parents=True, exist_ok=True)
    with (
        open(work_dir / CONSOLE, "a", encoding="utf-8", errors="backslashreplace") as console,
        redirect_stdout(console),
        redirect_stderr(console),
    ):
        try:
            work()
        except Exception as error:  # reported at the end, with the name of the log file
            traceback.print_exc(file=sys.stderr)
            return f"{type(error).__name__}: {error}".split("\n")[0]
    return None


def ask_all(study: Config, out: Path, *, questions: Path, image_folder: Path) -> None:
    """Also ask every run the questions of a LLaVA file. Arms that are evaluated without images are left out.

    Raises ``ValueError`` if a run is not finished.
    """
    from asvr.benchmarks.questions import evaluate_run

    for run in sighted(study, out):
        evaluate_run(
            arm_config(study, run.arm, run.seed, out),
            run.work_dir,
            stage=None,
            questions=questions,
            image_folder=image_folder,
            limit=None,
            out=asked_folder(run, questions),
        )
