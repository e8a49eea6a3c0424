"""Run public benchmarks, or the user's own tasks, on a model of this library through lmms-eval.

out/
  results.json         everything: model, versions, settings, results of each task, failed tasks, tasks left out;
                       results of earlier commands are kept if the task is unchanged, or can no longer be found
                       (unchecked)
  report.md            the same as tables
  tasks/<task>.json    a finished task; it is not run again while the model, the task and the settings are the same
  samples/<task>.jsonl its questions with the answers
  submissions/         files that some tasks write for a server
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path

from asvr import __version__
from asvr.base.hub_model import find_model, results_home
from asvr.base.log import logger, set_up_logging
from asvr.benchmarks.data_files import MissingData, found_folder
from asvr.benchmarks.report import write_report
from asvr.benchmarks.samples import write_samples
from asvr.benchmarks.task_files import Tasks, expand, find_tasks, refuse_judged
from asvr.recipe.config import MODEL_FILE, load_config

INSTALL = "benchmarks run through lmms-eval, which is not installed: pip install 'asvr[eval]'"


@dataclass(frozen=True)
class Source:
    """The model that is asked. stage: a stage of a work dir, None for a saved model. weights: a SHA-256 of them."""

    folder: str
    stage: str | None
    weights: str


def run_benchmarks(
    folder: Path,
    names: list[str],
    *,
    stage: str | None = None,
    batch_size: int = 1,
    limit: int | None = None,
    include_paths: list[Path] = (),
    device: str = "auto",
    skip_missing: bool = False,
    out: Path | None = None,
) -> dict:
    """Run tasks on the model that `asvr.load` reads from ``folder``. Returns the content of ``results.json``.

    A model of the Hub, like the data, is downloaded only with ``ASVR_DOWNLOAD=1``. Its results go to
    ``work_dirs/<name>``. names: tasks or groups of lmms-eval, or ``paper`` for the paper's fourteen. include_paths:
    folders with tasks of the user. limit: ask only so many questions of each task. skip_missing: leave out tasks whose
    data are not on this machine. Raises ``ValueError`` before a model is loaded if something is not installed, unknown
    or missing. A task that fails during the run is listed under ``failed``.
    """
    if importlib.util.find_spec("lmms_eval") is None:
        raise ValueError(INSTALL)
    if not names:
        raise ValueError("--tasks: name tasks of lmms-eval, with commas between them, or `paper`")
    model, folder = folder, find_model(folder, download=os.environ.get("ASVR_DOWNLOAD") == "1")
    source, names = find_source(folder, stage), expand(names)
    if out is None:  # a trial with some questions must not replace a full run
        out = (
            results_home(model, folder)
            / "benchmarks"
            / (source.stage or "")
            / ("" if limit is None else f"first_{limit}")
        )
    earlier = _earlier(out, source, limit, names)
    tasks = find_tasks(names, include_paths, others=list(earlier))
    refuse_judged(tasks, names)
    made_with = {name: _made_with(source, tasks, name, limit) for name in tasks.members}
    finished = [name for name in names if (_read(out, name) or {}).get("made_with") == made_with[name]]
    to_run = [name for name in names if name not in finished]
    missing = {} if os.environ.get("ASVR_DOWNLOAD") == "1" else tasks.missing(to_run)
    present = [name for name in names if name not in missing]
    if missing and not (skip_missing and present):
        raise MissingData(missing, present)
    set_up_logging(out / "benchmarks.log")
    for name in finished:
        logger.info("%s: finished before, kept", name)
    to_run = {name: made_with[name] for name in present if name not in finished}
    failed = _run(source, tasks, to_run, out, batch_size=batch_size, limit=limit, device=device) if to_run else {}
    done = {name: _read(out, name) for name in names if name not in failed and name not in missing}
    valid, changed = _valid(earlier, made_with)
    versions = {name: importlib.metadata.version(name) for name in ("lmms-eval", "torch", "transformers")}
    result = dict(
        model=asdict(source),
        versions=dict(asvr=__version__, **versions),
        settings=dict(limit=limit, batch_size=batch_size, device=device),
        tasks=dict(sorted((valid | done).items())),
        failed=failed,
        missing=list(missing),
        changed=changed,
        unchecked=[name for name in valid if name not in made_with],
    )
    write_report(result, out)
    logger.info("written: %s", out)
    return result


def find_source(folder: Path, stage: str | None) -> Source:
    """The model in a folder. Raises ``ValueError`` if the folder is no model, its stage is not finished, or its weights
    are missing."""
    from asvr.engine.finished import weights_digest
    from asvr.recipe.model_folder import why_no_model

    if (folder / MODEL_FILE).is_file():
        if stage is not None:
            raise ValueError(f"{folder}: a saved model has no stages; leave --stage {stage} out")
        return Source(str(folder), None, hashlib.sha256((folder / MODEL_FILE).read_bytes()).hexdigest())
    if not (folder / "config.py").is_file():
        raise ValueError(why_no_model(folder))
    stages = list(load_config(folder / "config.py").stages)
    if stage is not None and stage not in stages:
        raise ValueError(f"--stage {stage}: the run has no such stage; expected one of {stages}")
    name = stage or stages[-1]
    return Source(str(folder), name, weights_digest(folder, name))


def _made_with(source: Source, tasks: Tasks, name: str, limit: int | None) -> dict:
    """The settings of a result. The result is kept while they are the same."""
    return _model_and_way(source, limit) | dict(task=tasks.fingerprint(name))


def _model_and_way(source: Source, limit: int | None) -> dict:
    version = importlib.metadata.version("lmms-eval")
    return dict(weights=source.weights, limit=limit, asvr=__version__, lmms_eval=version)


def _earlier(out: Path, source: Source, limit: int | None, names: list[str]) -> dict[str, dict]:
    """Results of other tasks, from earlier commands with the same model and settings."""
    found = {file.stem: _read(out, file.stem) for file in sorted((out / "tasks").glob("[!.]*.json"))}
    same = _model_and_way(source, limit).items()
    return {name: f for name, f in found.items() if name not in names and same <= f["made_with"].items()}


def _valid(earlier: dict[str, dict], made_with: dict[str, dict]) -> tuple[dict[str, dict], list[str]]:
    """The results whose tasks are unchanged or cannot be found, and the names of tasks that have changed."""
    changed = [name for name in earlier if name in made_with and earlier[name]["made_with"] != made_with[name]]
    for name in changed:
        logger.info("%s: the task has changed since it ran, so its result is left out", name)
    return {name: found for name, found in earlier.items() if name not in changed}, changed


def _run(
    source: Source, tasks: Tasks, to_run: dict[str, dict], out: Path, *, batch_size: int, limit: int | None, device: str
) -> dict[str, str]:
    """Run tasks. to_run: names of tasks with the settings of their results. Returns failed tasks with reasons."""
    from asvr.base.compat import read_downloaded_datasets
    from asvr.benchmarks.lmms_eval import Asvr
    from asvr.loading import load

    pretrained = load(source.folder, device=device, stage=source.stage)
    model, failed = Asvr(pretrained=pretrained, batch_size=batch_size), {}
    fetched = tasks.missing(list(to_run))  # the tasks download these data; only then are their revisions known
    for number, (name, made_with) in enumerate(to_run.items(), 1):
        logger.info("%s: begins (%d of %d)", name, number, len(to_run))
        try:
            with read_downloaded_datasets(found_folder):
                found = _one(model, tasks.manager, name, limit, out)
        except Exception as error:  # a task may raise anything, and the other tasks still run
            logger.exception("%s failed", name)
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            made_with = _made_with(source, tasks, name, limit) if name in fetched else made_with
            _write(out, name, found | dict(made_with=made_with))
    return failed


def _one(model, manager, name: str, limit: int | None, out: Path) -> dict:
    """Run one task and write its samples. Returns the rest of lmms-eval's results."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.utils import handle_non_serializable

    found = simple_evaluate(
        model=model,
        tasks=[name],
        task_manager=manager,
        limit=limit,
        batch_size=model.batch_size,
        # Tasks read two options of lmms-eval's command line: where to write, and that scoring needs no images.
        cli_args=Namespace(output_path=str(out), process_with_media=False),
    )
    write_samples(found.pop("samples"), out / "samples")
    return json.loads(json.dumps(found, default=handle_non_serializable))


def _write(out: Path, name: str, result: dict) -> None:
    file = out / "tasks" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, file)


def _read(out: Path, name: str) -> dict | None:
    file = out / "tasks" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
