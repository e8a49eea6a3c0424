"""A study: several arms of one config, each trained with several seeds and asked the same questions.

A study is a Python file::

  config = '../scenes_mini.py'   the settings that all arms share
  seeds = [0, 1, 2]
  baseline = 'none'              the arm that all others are compared with
  groups = dict(ocr=['word'])    optional: kinds of question by group
  compare = [('both', 'pixel')]  optional: further pairs of arms; the second is subtracted from the first
  tokenizers = dict(pixel='../tokenizers/pixel_scenes.py')   optional: trained first, shared by all arms
  arms = dict(none=dict(model=dict(reconstruction=[])), ...)   an arm is a dict of changes to the config,
      viral='../targets/scenes/viral.py'                  or a config of its own that differs only in its model,
      ross=dict(config='../targets/scenes/ross.py', ...)  or such a config with changes

``asvr::NAME`` in place of a path is a recipe of the library. In an arm, ``study:NAME`` stands for the folder of a
tokenizer of the study. Names that begin with ``_`` are ignored.

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
from asvr.base.recipes import config_file, recipe_file
from asvr.base.text import nearest
from asvr.recipe.config import load_config
from asvr.recipe.config_file import read_config_file
from asvr.recipe.recipe import Recipe
from asvr.recipe.validate import check_config
from asvr.registry import SCOPE

FIELDS = ("config", "seeds", "baseline", "groups", "compare", "tokenizers", "arms")
REQUIRED = ("config", "seeds", "baseline", "arms")
MARK = "study:"
OWN_CONFIG = "config"  # the key of an arm that names its own config


@dataclass(frozen=True)
class Run:
    """One arm with one seed. work_dir: its folder."""

    arm: str
    seed: int
    work_dir: Path


def load_study(file: str | Path) -> Config:
    """Read a study, and check all that can be checked before a run.

    file: a path, or the name of a study that ships with the library. Raises ``ValueError`` with every problem of its
    fields, or of an arm's config.
    """
    file = config_file(file, "study")
    read = read_config_file(file)
    study = Config({key: value for key, value in read.to_dict().items() if not key.startswith("_")})
    problems = [f"{key}: unknown; {nearest(key, FIELDS)}" for key in study if key not in FIELDS]
    problems += [f"{key} is missing" for key in REQUIRED if key not in study]
    if not problems and study.baseline not in study.arms:
        problems.append(f"baseline={study.baseline!r}: no such arm; {nearest(study.baseline, list(study.arms))}")
    if not problems:
        unknown = [arm for pair in study.get("compare", []) for arm in pair if arm not in study.arms]
        problems += [f"compare: no arm {arm!r}; {nearest(arm, list(study.arms))}" for arm in unknown]
        problems += [f"compare: {pair}: expected two arms" for pair in study.get("compare", []) if len(pair) != 2]
    if not problems and (not study.seeds or len(set(study.seeds)) != len(study.seeds)):
        problems.append(f"seeds={list(study.seeds)}: expected different numbers")
    if problems:
        raise ValueError(_listing(file, problems))
    if wrong := [arm for arm, own in study.arms.items() if not _is_arm(own)]:
        expected = "expected a dict of changes, the path of a config, or dict(config='PATH', ...)"
        raise ValueError(_listing(file, [f"arms.{arm}={study.arms[arm]!r}: {expected}" for arm in wrong]))
    study.config = _path(study.config, file.parent)
    study.tokenizers = {name: _path(path, file.parent) for name, path in study.get("tokenizers", {}).items()}
    study.arms = {arm: _arm(own, file.parent) for arm, own in study.arms.items()}
    for arm in study.arms:
        try:
            check_config(arm_config(study, arm, study.seeds[0], file.parent))
        except ValueError as error:
            raise ValueError(f"{file}, arm {arm!r}: {error}") from error
    if problems := _wrong_kinds(study, file.parent):
        raise ValueError(_listing(file, problems))
    return study


def _listing(file: Path, problems: list[str]) -> str:
    return f"{file}:\n" + "\n".join(f"- {problem}" for problem in problems)


def _wrong_kinds(study: Config, out: Path) -> list[str]:
    """Problems of ``groups``, if the config of the questions lists its kinds."""
    evaluation = Recipe(arm_config(study, study.baseline, study.seeds[0], out)).last.evaluation
    if not evaluation:
        return [f"config: the last stage of {study.config} has no `evaluation`; a study needs questions"]
    asked = evaluation.dataset.get("kinds")
    grouped = {kind for kinds in (study.get("groups") or {}).values() for kind in kinds}
    return [
        f"groups: no question of kind {k!r}; {nearest(k, asked)}" for k in sorted(grouped) if asked and k not in asked
    ]


def arm_config(study: Config, arm: str, seed: int, out: Path) -> Config:
    """The config that ``asvr train`` would run. Raises ``ValueError`` if the arm has a config of its own that differs
    from the study's in more than its model."""
    changes = study.arms[arm].to_dict()
    file = changes.pop(OWN_CONFIG, study.config)
    cfg = load_config(file)
    if file != study.config and (other := _other_sections(cfg, load_config(study.config))):
        raise ValueError(
            f"{file} differs from {study.config} in {', '.join(other)}: an arm's config may differ only in its model"
        )
    folders = {name: out / "tokenizers" / name / "tokenizer" for name in study.tokenizers}
    try:
        cfg.merge_from_dict(_named(changes, folders))
    except (KeyError, TypeError) as error:
        raise ValueError(f"does not fit {file}: {error}") from error
    cfg.merge_from_dict(dict(runtime=dict(seed=seed), data=dict(cache_dir=str(out / "cache"))))
    return cfg


def _is_arm(own) -> bool:
    return isinstance(own, str) or (isinstance(own, dict) and isinstance(own.get(OWN_CONFIG, ""), str))


def _arm(own: Config | str, folder: Path) -> dict:
    """The changes of an arm, with the full path of its own config if it has one."""
    changes = {OWN_CONFIG: own} if isinstance(own, str) else own.to_dict()
    return {key: _path(value, folder) if key == OWN_CONFIG else value for key, value in changes.items()}


def _path(given: str, folder: Path) -> str:
    """The whole path of a config. ``asvr::NAME`` is a recipe of the library. Raises ``ValueError`` for one that is
    none."""
    scope, mark, name = given.partition("::")
    return str(recipe_file(name) if mark and scope == SCOPE else (folder / given).resolve())


def _other_sections(cfg: Config, other: Config) -> list[str]:
    """The keys in which two configs differ, besides their models."""

    def sections(config: Config) -> dict:
        whole = config.to_dict()
        stages = whole.pop("stages", {})
        found = {f"stages.{name}": {k: v for k, v in stage.items() if k != "model"} for name, stage in stages.items()}
        return found | {key: value for key, value in whole.items() if key != "model"}

    first, second = sections(cfg), sections(other)
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


def _named(value, folders: dict[str, Path]):
    """``value`` with folders in place of the names of the study's tokenizers."""
    if isinstance(value, dict):
        return {key: _named(item, folders) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_named(item, folders) for item in value]
    if isinstance(value, str) and value.startswith(MARK):
        name = value.removeprefix(MARK)
        if name not in folders:
            raise ValueError(f"{value!r}: the study has no tokenizer {name!r}; {nearest(name, list(folders))}")
        return str(folders[name].absolute())
    return value


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
    wanted = int(given) if given.isdecimal() else share  # OpenMP allows other forms, such as '4,2'
    return str(max(1, min(share, wanted)))


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
            raise ValueError(f"{run.work_dir}: was asked other questions than {study.baseline!r}")
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
