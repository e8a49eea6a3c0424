"""Compares the arms of a study with the runs that are already in its folder."""

from pathlib import Path

from mmengine.config import Config

from asvr.engine import checkpoint
from asvr.engine.identity import OtherConfiguration, check_same_config, identity
from asvr.recipe.recipe import Recipe
from asvr.registry import TEXT_TOKENIZERS
from asvr.studies.results import Run, runs
from asvr.studies.study_file import arm_config


def require_same_arms(study: Config, out: Path) -> None:
    """Raise ``ValueError`` if runs in ``out`` were made with other settings than their arms have now.

    Settings that a run may change when it goes on are allowed. Only the settings are compared: a run compares its data
    and its weights itself.
    """
    changed: dict[str, str] = {}
    text_tokenizers: list[tuple] = []  # each with its config; arms mostly have the same one
    for run in runs(study, out):
        if run.arm not in changed and (differences := _differences(study, run, out, text_tokenizers)) is not None:
            changed[run.arm] = differences
    if changed:
        listing = "; ".join(f"arm {arm!r}, {differences}" for arm, differences in changed.items())
        folders = ", ".join(str(out / arm) for arm in changed)
        raise ValueError(
            f"{out}: arms were changed after they had run ({listing}). Undo the change in the study's file, give "
            f"another --out, or remove the folders of these arms: {folders}"
        )


def _differences(study: Config, run: Run, out: Path, text_tokenizers: list[tuple]) -> str | None:
    """How a run differs from its arm, or None."""
    newest = {folder.parent.name: checkpoint.newest(folder) for folder in run.work_dir.glob("*/checkpoints")}
    if not any(newest.values()):
        return None
    recipe = Recipe(arm_config(study, run.arm, run.seed, out))
    text_tokenizer = next((built for config, built in text_tokenizers if config == recipe.text_tokenizer), None)
    if text_tokenizer is None:
        text_tokenizer = TEXT_TOKENIZERS.build(recipe.text_tokenizer)
        text_tokenizers.append((recipe.text_tokenizer, text_tokenizer))
    for name, stage in recipe.stages.items():
        if newest.get(name) is None:
            continue
        try:
            check_same_config(newest[name], identity(stage, text_tokenizer))
        except OtherConfiguration as error:
            return f"stage {name}: {error.differences}"
    return None
