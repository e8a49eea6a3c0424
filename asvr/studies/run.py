"""Runs a study: trains every arm with every seed, and asks all of them the same questions.

out/
  report.json  report.md  *.png  tokenizers/<name>/  cache/  <arm>/seed_<n>/ (a work dir of asvr train)
"""

import multiprocessing
import os
import sys
import traceback
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from mmengine.config import Config

from asvr.base.log import logger, progress_bar
from asvr.studies.existing import require_same_arms
from asvr.studies.results import Run, asked_folder, runs, sighted
from asvr.studies.study_file import arm_config


def run_study(study: Config, out: Path, *, jobs: int = 1) -> list[str]:
    """Train and evaluate every arm with every seed. Finished runs are kept, interrupted runs continue.

    jobs: the number of runs at the same time, see `threads_of_a_run`. All arms of one seed run before the next seed, so
    a stopped study has complete seeds. Returns a message for each run that failed. The other runs are done anyway.
    Raises ``ValueError`` before the first run if an arm was changed after it had run, see `require_same_arms`.
    """
    require_same_arms(study, out)
    for name, config in study.tokenizers.items():
        _train_tokenizer(config, out / "tokenizers" / name)
    waiting = runs(study, out)
    os.environ["OMP_NUM_THREADS"] = threads_of_a_run(jobs)  # for processes that start from now on
    failed: list[str] = []
    with (
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool,
        progress_bar(total=len(waiting), desc="study", unit="run") as bar,
    ):
        under_way: dict = {}
        while waiting or under_way:
            together = jobs if bar.n else 1  # the first run computes the features that all others read
            while waiting and len(under_way) < together:
                run = waiting.pop(0)
                under_way[pool.submit(_one, study.to_dict(), run, out)] = run
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                run, problem = under_way.pop(future), future.result()
                bar.update(1)
                message = f"{run.arm}, seed {run.seed}: {problem or 'done'} ({run.work_dir / 'console.log'})"
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
    run.work_dir.mkdir(parents=True, exist_ok=True)
    with (
        open(run.work_dir / "console.log", "a", encoding="utf-8", errors="backslashreplace") as console,
        redirect_stdout(console),
        redirect_stderr(console),
    ):
        from asvr.engine.run import run as train

        try:
            train(arm_config(Config(study), run.arm, run.seed, out), run.work_dir)
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
