"""Finds the runs of a study, and reads the results of those that are finished."""

import json
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from asvr.base.files import sha256_of
from asvr.engine.finished import DONE
from asvr.evaluation.metrics import own_numbers
from asvr.recipe.recipe import Recipe
from asvr.studies.study_fields import seeds_of
from asvr.studies.study_file import arm_config

RESULTS = "results.json"


@dataclass(frozen=True)
class Run:
    """One arm with one seed. work_dir: its folder."""

    arm: str
    seed: int
    work_dir: Path

    @property
    def finished(self) -> bool:
        return (self.work_dir / RESULTS).is_file()


def runs(study: Config, out: Path) -> list[Run]:
    """All runs of a study. Those of one seed come before the next seed."""
    seeds = {arm: seeds_of(study, arm) for arm in study.arms}
    return [
        Run(arm, seed, out / arm / f"seed_{seed}") for seed in study.seeds for arm in study.arms if seed in seeds[arm]
    ]


def sighted(study: Config, out: Path) -> list[Run]:
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


def asked_folder(run: Run, questions: Path) -> Path:
    return run.work_dir / "questions" / questions.stem


def collect(study: Config, out: Path, *, questions: Path | None = None) -> dict[str, list[dict]]:
    """For each arm, the results of its seeds, with ``answers``, ``seed``, ``seconds`` of training, ``steps`` by stage,
    ``numbers`` of targets and of metrics other than accuracy, and ``work_dir``.

    The baseline comes first. questions: the file of `ask_all`, in place of the study's own questions. Raises
    ``ValueError`` if a run is not finished, or was asked other questions than the baseline.
    """
    found, unfinished = _read_all(study, out, questions)
    if unfinished:
        raise next(iter(unfinished.values()))
    return found


def collect_finished(study: Config, out: Path, *, questions: Path | None = None) -> tuple[dict, list[str]]:
    """Like `collect`, but only of the seeds that both an arm and the baseline have finished.

    Also returns what is left out. The baseline may be alone. Raises ``ValueError`` if it has no finished run.
    """
    found, unfinished = _read_all(study, out, questions)
    missing = [
        f"{run.arm}, seed {run.seed} ({'not finished' if questions is None else 'not asked'})" for run in unfinished
    ]
    shared = {run["seed"] for run in found.get(study.baseline, [])}
    for arm, own in found.items():
        missing += [f"{arm}, seed {run['seed']} (the baseline lacks it)" for run in own if run["seed"] not in shared]
    kept = {arm: [run for run in own if run["seed"] in shared] for arm, own in found.items()}
    kept = {arm: own for arm, own in kept.items() if own}
    if unfinished and study.baseline not in kept:
        raise ValueError(
            f"{out}: no report: it needs a finished run of the baseline {study.baseline!r}. "
            f"{next(iter(unfinished.values()))}"
        )
    return kept, missing


def require_begun(study: Config, out: Path, option: str) -> None:
    """Raise ``ValueError`` if ``out`` has no run of the study. option: the one that needs runs."""
    if not any(run.work_dir.is_dir() for run in runs(study, out)):
        raise ValueError(f"{out}: there is no run of this study; run the same command without {option}")


class _NotFinished(ValueError):
    """A run has no result yet, or none on the questions."""


def _read_all(
    study: Config, out: Path, questions: Path | None
) -> tuple[dict[str, list[dict]], dict[Run, _NotFinished]]:
    """The results by arm, and the runs that have none, each with the reason."""
    found: dict[str, list[dict]] = {}
    unfinished = {}
    expected = None
    for run in sorted(
        runs(study, out) if questions is None else sighted(study, out), key=lambda run: run.arm != study.baseline
    ):
        stages = list(Recipe(arm_config(study, run.arm, run.seed, out)).stages)
        try:
            result, file = _own(run, stages[-1]) if questions is None else _others(run, questions)
        except _NotFinished as reason:
            unfinished[run] = reason
            continue
        answers = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        asked = [(answer["question"], answer["expected"]) for answer in answers]
        expected = expected or asked
        if asked != expected:
            raise ValueError(
                f"{run.work_dir}: this run was asked other questions than the baseline {study.baseline!r}: all arms "
                "must have the same evaluation"
            )
        files = {name: run.work_dir / name / DONE for name in stages}
        done = {name: json.loads(f.read_text(encoding="utf-8")) for name, f in files.items() if f.is_file()}
        own = dict(
            answers=answers,
            seed=run.seed,
            seconds=sum(stage["seconds"] for stage in done.values()),
            steps={name: stage["steps"] for name, stage in done.items()},
            numbers=own_numbers(result),
            work_dir=str(run.work_dir),
        )
        found.setdefault(run.arm, []).append(result | own)
    return found, unfinished


def _own(run: Run, stage: str) -> tuple[dict, Path]:
    """The result on the study's own questions, and the file of its answers. stage: the last one."""
    results, file = run.work_dir / RESULTS, run.work_dir / stage / "answers.jsonl"
    result = (
        json.loads(results.read_text(encoding="utf-8")).get(stage) if results.is_file() and file.is_file() else None
    )
    if result is None:
        raise _NotFinished(f"{run.work_dir}: this run is not finished; run the study without --report")
    return result, file


def _others(run: Run, questions: Path) -> tuple[dict, Path]:
    folder = asked_folder(run, questions)
    result = (
        json.loads((folder / "result.json").read_text(encoding="utf-8")) if (folder / "result.json").is_file() else {}
    )
    if result.get("asked", {}).get("questions") != sha256_of(questions):
        raise _NotFinished(
            f"{run.work_dir}: was not asked the current questions of {questions}; run the study without --report"
        )
    return result, folder / "answers.jsonl"
