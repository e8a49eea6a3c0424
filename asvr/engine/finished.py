"""Finds the files that a finished stage has left in the work dir."""

import hashlib
import json
from pathlib import Path

from asvr.base.hub_model import local_model
from asvr.engine import checkpoint
from asvr.recipe.config import MODEL_FILE, SCRATCH, is_model_folder
from asvr.recipe.recipe import Recipe

DONE, EMA = "done.json", "ema"


def require_start(recipe: Recipe, name: str, work_dir: Path) -> None:
    """Raise ``ValueError`` if the stage that ``name`` starts from is not finished."""
    init = recipe.stages[name].init
    if init != SCRATCH and not is_model_folder(init):
        require_finished(work_dir, init)


def require_finished(work_dir: Path, name: str) -> None:
    if not (work_dir / name / DONE).is_file():
        raise ValueError(f"stage {name!r} is not finished in {work_dir}: run it first with asvr train")


def finished_at(work_dir: Path, name: str) -> int | None:
    """The time when a stage was finished last, in nanoseconds; None if it is not finished."""
    file = work_dir / name / DONE
    return file.stat().st_mtime_ns if file.is_file() else None


def finished_checkpoint(work_dir: Path, name: str) -> Path:
    """The last checkpoint of a finished stage. Raises ``ValueError`` if the stage is not finished, or if it is gone."""
    require_finished(work_dir, name)
    folder = last_checkpoint(work_dir, name)
    if folder is None:
        raise ValueError(
            f"the last checkpoint of stage {name!r} in {work_dir} is gone: run asvr train to make it again"
        )
    return folder


def finished_averages(work_dir: Path, name: str) -> Path:
    """The averaged weights at the end of a finished stage, see ``runtime.ema``.

    Raises ``ValueError`` if there are none, or if they are from another run of the stage."""
    folder, last = work_dir / name / EMA, finished_checkpoint(work_dir, name)
    if not (folder / "checkpoint.json").is_file():
        raise ValueError(f"{folder}: stage {name!r} kept no averages of its weights: train it with runtime.ema")
    own, other = (checkpoint.read_meta(found) for found in (folder, last))
    if any(own.get(key) != other.get(key) for key in ("step", "start")):
        raise ValueError(f"{folder} was made by an earlier run of stage {name!r}: train it with runtime.ema")
    return folder


def trained_with(work_dir: Path, name: str) -> dict:
    """The `identity` that a finished stage was trained with. Raises the errors of `finished_checkpoint`."""
    return checkpoint.read_meta(finished_checkpoint(work_dir, name))["config"]


def weights_digest(work_dir: Path, name: str) -> str:
    """The SHA-256 of a finished stage's weights. Raises the errors of `finished_checkpoint`."""
    return checkpoint.weights_digest(finished_checkpoint(work_dir, name))


def start_digest(recipe: Recipe, name: str, work_dir: Path) -> str | None:
    """The digest of the weights that a stage starts from.

    For an earlier stage it is `weights_digest`. For a model folder it is the SHA-256 of its description, which has the
    digests of its weights. None if the stage starts from scratch, or if the weights are gone."""
    init = recipe.stages[name].init
    if (folder := local_model(init)) is not None:
        return hashlib.sha256((folder / MODEL_FILE).read_bytes()).hexdigest()
    return weights_digest(work_dir, init) if init != SCRATCH and last_checkpoint(work_dir, init) else None


def last_checkpoint(work_dir: Path, name: str) -> Path | None:
    """The last checkpoint of a finished stage, or None if it is not there."""
    newest = checkpoint.newest(work_dir / name / "checkpoints")
    if newest is None or not (work_dir / name / DONE).is_file():
        return None
    steps = json.loads((work_dir / name / DONE).read_text(encoding="utf-8"))["steps"]
    return newest if checkpoint.read_meta(newest)["step"] == steps else None
