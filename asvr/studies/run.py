"""Runs a study: trains every arm with every seed, and asks all of them the same questions.

out/
  report.json  report.md  *.png  tokenizers/<name>/  cache/  <arm>/seed_<n>/ (a work dir of asvr train)
"""

import json
import multiprocessing
import os
import sys
import traceback
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from asvr.base.files import sha256_of
from asvr.base.log import logger, progress_bar
from asvr.recipe.recipe import Recipe
from asvr.studies.study_file import arm_config


@dataclass(frozen=True)
class Run:
    """One arm with one seed. work_dir: its folder."""

    arm: str
    seed: int
    work_dir: Path


def run_study(study: Config, out: Path, *, jobs: int = 1) -> list[str]:
    """Train and evaluate every arm with every seed. Finished runs are kept, interrupted runs continue.

    jobs: the number of runs at the same time, see `threads_of_a_run`. All arms of one seed run before the next seed, so
    a stopped study has complete seeds. Returns a message for each run that failed. The other runs are done anyway.
    """
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

    for run in _sighted(study, out):
        evaluate_run(
            arm_config(study, run.arm, run.seed, out),
            run.work_dir,
            stage=None,
            questions=questions,
            image_folder=image_folder,
            limit=None,
            out=_asked(run, questions),
        )


def runs(study: Config, out: Path) -> list[Run]:
    return [Run(arm, seed, out / arm / f"seed_{seed}") for seed in study.seeds for arm in study.arms]


def _sighted(study: Config, out: Path) -> list[Run]:
    """The runs whose questions come with images."""
    blind = {arm for arm in study.arms if not _shows_images(arm_config(study, arm, study.seeds[0], out))}
    if study.baseline in blind:
        raise ValueError(
            f"baseline {study.baseline!r} is asked without images, but these questions have images: "
            "choose another baseline"
        )
    return [run for run in runs(study, out) if run.arm not in blind]


def _shows_images(cfg: Config) -> bool:
    return Recipe(cfg).last.evaluation.dataset.get("with_images", True)


def _asked(run: Run, questions: Path) -> Path:
    return run.work_dir / "questions" / questions.stem


def collect(study: Config, out: Path, *, questions: Path | None = None) -> dict[str, list[dict]]:
    """For each arm, the results of its seeds, with ``answers``, ``seconds`` of training and ``work_dir``.

    The baseline comes first. questions: the file of `ask_all`, in place of the study's own questions. Raises
    ``ValueError`` if a run is not finished, or was asked other questions than the baseline.
    """
    found: dict[str, list[dict]] = {}
    expected = None
    for run in sorted(
        runs(study, out) if questions is None else _sighted(study, out), key=lambda run: run.arm != study.baseline
    ):
        result, file = _own(study, run, out) if questions is None else _others(run, questions)
        answers = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        asked = [(answer["question"], answer["expected"]) for answer in answers]
        expected = expected or asked
        if asked != expected:
            raise ValueError(
                f"{run.work_dir}: this run was asked other questions than the baseline {study.baseline!r}: all arms "
                "must have the same evaluation"
            )
        seconds = sum(
            json.loads(done.read_text(encoding="utf-8"))["seconds"] for done in run.work_dir.glob("*/done.json")
        )
        found.setdefault(run.arm, []).append(dict(result, answers=answers, seconds=seconds, work_dir=str(run.work_dir)))
    return found


def _own(study: Config, run: Run, out: Path) -> tuple[dict, Path]:
    """The result on the study's own questions, and its answers."""
    stage = Recipe(arm_config(study, run.arm, run.seed, out)).last.name
    results, file = run.work_dir / "results.json", run.work_dir / stage / "answers.jsonl"
    result = (
        json.loads(results.read_text(encoding="utf-8")).get(stage) if results.is_file() and file.is_file() else None
    )
    if result is None:
        raise ValueError(f"{run.work_dir}: this run is not finished; run the same command without --report")
    return result, file


def _others(run: Run, questions: Path) -> tuple[dict, Path]:
    folder = _asked(run, questions)
    result = (
        json.loads((folder / "result.json").read_text(encoding="utf-8")) if (folder / "result.json").is_file() else {}
    )
    if result.get("asked", {}).get("questions") != sha256_of(questions):
        raise ValueError(
            f"{run.work_dir}: was not asked the current questions of {questions}; run the same command without --report"
        )
    return result, folder / "answers.jsonl"
