"""Shared trainings of a study: each is trained once, and arms and seeds start from its model.

out/shared/<name>/   a work dir of asvr train
  model/             the model that it ended with, see `asvr.pretrained`
"""

from dataclasses import replace
from pathlib import Path

from mmengine.config import Config, ConfigDict
from torch import nn

from asvr.base.files import sha256_of
from asvr.base.text import short
from asvr.data.token_ids import other_ids
from asvr.engine.finished import DONE, last_checkpoint
from asvr.engine.run import read_json_file
from asvr.recipe.model_file import read_description
from asvr.recipe.model_folder import OF_TARGETS, SEPARATORS
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe, Stage
from asvr.studies.existing import TextTokenizers
from asvr.studies.study_fields import MARK, OWN_CONFIG, starts_of
from asvr.studies.study_file import MODEL, arm_config, shared_config, shared_folder


def starts(study: Config, out: Path) -> list[dict]:
    """What arms start from, for a report: for each shared model that an arm names, its ``name``, ``config`` and
    ``seed``, ``steps`` by stage, and ``arms`` with the stages that start from it."""
    found = []
    for name in study.shared:
        stages = {
            arm: [stage for stage, start in starts_of(own).items() if start == name] for arm, own in study.arms.items()
        }
        if any(stages.values()):
            cfg, folder = shared_config(study, name, out), shared_folder(out, name)
            files = {stage: folder / stage / DONE for stage in cfg.stages}
            found.append(
                dict(
                    name=name,
                    config=study.shared[name].get(OWN_CONFIG, study.config),
                    seed=cfg.runtime.seed,
                    steps={stage: read_json_file(file)["steps"] for stage, file in files.items() if file.is_file()},
                    arms={arm: own for arm, own in stages.items() if own},
                )
            )
    return found


def finished_shared(study: Config, out: Path) -> list[str]:
    """The shared trainings that have a model. Raises ``ValueError`` for a model that is not complete."""
    finished = [name for name in study.shared if (shared_folder(out, name) / MODEL).exists()]
    for name in finished:
        work_dir = shared_folder(out, name)
        if (why := _why_not_whole(work_dir / MODEL)) is not None:
            raise ValueError(
                f"{work_dir / MODEL}: this model is not complete ({why}): remove this folder, and it is written again "
                "from the checkpoints beside it"
            )
        if last_checkpoint(work_dir, Recipe(shared_config(study, name, out)).last.name) is None:
            raise ValueError(
                f"{work_dir}: it has a model and not the last checkpoint of its training, so nothing shows how the "
                "model was made: put the checkpoint back, or remove this folder to train it again"
            )
    return finished


def _why_not_whole(folder: Path) -> str | None:
    try:
        description = read_description(folder)
    except ValueError as error:
        return str(error)
    for name, expected in description["sha256"].items():
        if not (folder / name).is_file() or sha256_of(folder / name) != expected:
            return f"{name} is missing or damaged"
    return None


def require_fitting_starts(study: Config, out: Path) -> None:
    """Raise ``ValueError`` if an arm, or a shared training, cannot start from the shared model that it names.

    The token ids of both must be the same, and the sizes of all parts that both have. Nothing is trained or read for
    this. Targets do not count: those that the shared model lacks are new."""
    if not study.shared:
        return
    text_tokenizers, models = TextTokenizers(), _Models()
    shared = {name: Recipe(shared_config(study, name, out)) for name in study.shared}
    arms = {arm: Recipe(arm_config(study, arm, study.seeds[0], out)) for arm in study.arms}
    for section, recipes, given in (("shared", shared, study.shared), ("arms", arms, study.arms)):
        for own, recipe in recipes.items():
            for stage, name in starts_of(given[own]).items():
                why = _other_ids(recipe, shared[name], text_tokenizers)
                if why is None:
                    why = _other_sizes(models.shapes(recipe.stages[stage]), models.shapes(shared[name].last))
                if why is not None:
                    raise ValueError(
                        f"{section}.{own}.stages.{stage}.init={MARK + name!r}: expected a model with the same text "
                        f"tokenizer and the same sizes, but they differ in {why}"
                    )


def _other_ids(recipe: Recipe, start: Recipe, text_tokenizers: TextTokenizers) -> str | None:
    if recipe.text_tokenizer == start.text_tokenizer:
        return None
    why = other_ids(text_tokenizers.of(recipe), text_tokenizers.of(start))
    return None if why is None else f"text_tokenizer: {why}"


class _Models:
    """The shapes of models, without their targets and transforms. Arms mostly have the same model."""

    def __init__(self):
        self._built: list[tuple] = []

    def shapes(self, stage: Stage) -> dict:
        plain = replace(stage, model=ConfigDict(stage.model, reconstruction=[]), model_transforms=())
        key = (plain.model, plain.text_tokenizer)
        found = next((shapes for known, shapes in self._built if known == key), None)
        if found is None:
            found = _shapes(build_meta(plain))
            self._built.append((key, found))
        return found


def _shapes(model: nn.Module) -> dict:
    left_out = (*(f"{part}." for part in OF_TARGETS), SEPARATORS)
    return {key: tuple(value.shape) for key, value in model.state_dict().items() if not key.startswith(left_out)}


def _other_sizes(own: dict, there: dict) -> str | None:
    """The first tensors that differ, in words, or None."""
    wrong = [key for key in sorted(own.keys() | there.keys()) if own.get(key) != there.get(key)]
    if not wrong:
        return None
    named = ", ".join(f"{key} is {_size(own.get(key))} and {_size(there.get(key))} there" for key in wrong[:3])
    return f"{len(wrong)} tensors: {named}"


def _size(shape: tuple | None) -> str:
    return "missing" if shape is None else short(list(shape))
