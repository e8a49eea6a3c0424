"""Compares the arms and the shared trainings of a study with what is already in its folder."""

from pathlib import Path

from mmengine.config import Config

from asvr.engine import checkpoint
from asvr.engine.finished import start_digest
from asvr.engine.identity import OtherConfiguration, check_same_config, identity
from asvr.recipe.recipe import Recipe
from asvr.registry import TEXT_TOKENIZERS
from asvr.studies.results import runs
from asvr.studies.study_fields import MARK, starts_of
from asvr.studies.study_file import arm_config, shared_config, shared_folder


class TextTokenizers:
    """Builds text tokenizers, and keeps them: arms mostly have the same one."""

    def __init__(self):
        self._built: list[tuple] = []  # each with its config, which is not hashable

    def of(self, recipe: Recipe):
        found = next((built for config, built in self._built if config == recipe.text_tokenizer), None)
        if found is None:
            found = TEXT_TOKENIZERS.build(recipe.text_tokenizer)
            self._built.append((recipe.text_tokenizer, found))
        return found


def require_same_arms(study: Config, out: Path) -> None:
    """Raise ``ValueError`` if runs in ``out`` were made with other settings than their arms have now, or from another
    shared model than the one that is there now.

    Settings that a run may change when it goes on are allowed. Only the settings are compared: a run compares its data
    and its weights itself.
    """
    changed: dict[str, str] = {}
    text_tokenizers = TextTokenizers()
    for run in runs(study, out):
        if run.arm in changed or not _begun(run.work_dir):
            continue
        recipe, starts = Recipe(arm_config(study, run.arm, run.seed, out)), starts_of(study.arms[run.arm])
        if (differences := _differences(recipe, starts, run.work_dir, text_tokenizers)) is not None:
            changed[run.arm] = differences
    if changed:
        listing = "; ".join(f"arm {arm!r}, {differences}" for arm, differences in changed.items())
        folders = ", ".join(str(out / arm) for arm in changed)
        raise ValueError(
            f"{out}: arms were changed after they had run ({listing}). Undo the change in the study's file, give "
            f"another --out, or remove the folders of these arms: {folders}"
        )


def require_same_shared(study: Config, out: Path) -> None:
    """The same for shared trainings. Whatever started from a changed one has to be removed with it."""
    text_tokenizers = TextTokenizers()
    for name in study.shared:
        work_dir = shared_folder(out, name)
        if not _begun(work_dir):
            continue
        recipe, starts = Recipe(shared_config(study, name, out)), starts_of(study.shared[name])
        if (differences := _differences(recipe, starts, work_dir, text_tokenizers)) is not None:
            folders = ", ".join(map(str, [work_dir, *_started_from(study, name, out)]))
            raise ValueError(
                f"{out}: shared {name!r} was changed after it had run ({differences}). Undo the change in the study's "
                f"file, give another --out, or remove it and all that started from it: {folders}"
            )


def _started_from(study: Config, name: str, out: Path) -> list[Path]:
    """The folders of the study that exist and began with a shared model, also by way of another shared model."""
    names, found = {name}, []
    for other, own in study.shared.items():
        if names & set(starts_of(own).values()):
            names.add(other)
            found.append(shared_folder(out, other))
    found += [out / arm for arm, own in study.arms.items() if names & set(starts_of(own).values())]
    return [folder for folder in found if folder.is_dir()]


def _begun(work_dir: Path) -> bool:
    return any(checkpoint.newest(folder) is not None for folder in work_dir.glob("*/checkpoints"))


def _differences(recipe: Recipe, starts: dict[str, str], work_dir: Path, text_tokenizers: TextTokenizers) -> str | None:
    """How a run differs from its config, or None. starts: the shared models that its stages begin with."""
    for name, stage in recipe.stages.items():
        if (newest := checkpoint.newest(work_dir / name / "checkpoints")) is None:
            continue
        try:
            check_same_config(newest, identity(stage, text_tokenizers.of(recipe)))
        except OtherConfiguration as error:
            return f"stage {name}: {error.differences}"
        now = start_digest(recipe, name, work_dir) if name in starts else None
        if now is not None and checkpoint.read_meta(newest)["start"] != now:
            return f"stage {name}: it did not begin with the model that {MARK}{starts[name]} is now"
    return None
