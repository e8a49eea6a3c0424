"""Finds the runs of a study, and reads the results of those that are finished."""

import json
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from asvr.base.files import sha256_of
from asvr.recipe.recipe import Recipe
from asvr.studies.study_file import arm_config


@dataclass(frozen=True)
class Run:
    """One arm with one seed. work_dir: its folder."""

    arm: str
    seed: int
    work_dir: Path


def runs(study: Config, out: Path) -> list[Run]:
    return [Run(arm, seed, out / arm / f"seed_{seed}") for seed in study.seeds for arm in study.arms]


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
    """For each arm, the results of its seeds, with ``answers``, ``seconds`` of training and ``work_dir``.

    The baseline comes first. questions: the file of `ask_all`, in place of the study's own questions. Raises
    ``ValueError`` if a run is not finished, or was asked other questions than the baseline.
    """
    found: dict[str, list[dict]] = {}
    expected = None
    for run in sorted(
        runs(study, out) if questions is None else sighted(study, out), key=lambda run: run.arm != study.baseline
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
    folder = asked_folder(run, questions)
    result = (
        json.loads((folder / "result.json").read_text(encoding="utf-8")) if (folder / "result.json").is_file() else {}
    )
    if result.get("asked", {}).get("questions") != sha256_of(questions):
        raise ValueError(
            f"{run.work_dir}: was not asked the current questions of {questions}; run the same command without --report"
        )
    return result, folder / "answers.jsonl"
