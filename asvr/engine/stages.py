"""Trains one stage of a config. A finished stage is skipped, and an interrupted one goes on.

work_dir/
  config.py  metrics.jsonl  results.json  summary.png  train.log
  text_tokenizer/  tokenizers/<target>-<digest>/  cache/
  <stage>/checkpoints/step_00000500/   <stage>/done.json
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmengine.runner import Runner
from torch import nn

from asvr.base.distributed import get_world_size, is_main_process, wait
from asvr.base.files import replace_text
from asvr.base.hub_model import local_model
from asvr.base.log import logger
from asvr.base.machine import machine
from asvr.base.precision import PRECISIONS
from asvr.data.image_digest import first_refused, image_digest
from asvr.engine import checkpoint
from asvr.engine.finished import (
    DONE,
    finished_averages,
    finished_checkpoint,
    last_checkpoint,
    require_start,
    start_digest,
)
from asvr.engine.hooks.checkpoint import stateful
from asvr.engine.identity import architecture, check_same_config, identity, other_places, tell_changes
from asvr.engine.parallel import full_params, unwrap
from asvr.engine.prepare import Prepared
from asvr.engine.random_state import restore_random_states
from asvr.engine.runner import build_runner
from asvr.engine.starts import LAST_TAP, begin_with, load_start, require_same_taps
from asvr.flops.recomputation import fit_memory
from asvr.models.attention import AUTO, use_attention
from asvr.models.attention_checks import check_isolation, check_rules
from asvr.models.compiling import compile_blocks, uncompiled
from asvr.models.component import fingerprint_of
from asvr.recipe.build import build_device, build_model, data_fingerprint
from asvr.recipe.config import SCRATCH, is_model_folder
from asvr.recipe.model_folder import start_from
from asvr.recipe.recipe import Recipe, Stage
from asvr.registry import DATASETS, MODEL_WRAPPERS


def run_stage(recipe: Recipe, name: str, prepared: Prepared, work_dir: Path, resume_from: Path | None = None):
    """Train one stage to its end, or load it if it is finished. Returns the model.

    With several processes, the model is in its wrapper. resume_from: the checkpoint to go on from, even if the stage is
    finished; None: the newest checkpoint of this stage, if there is one.
    Raises ``ValueError`` if a checkpoint belongs to another configuration or to other frozen weights.
    """
    stage = prepared.recipe.stages[name]
    folder = work_dir / name
    newest = resume_from or checkpoint.newest(folder / "checkpoints")
    if resume_from is None and (folder / DONE).is_file():
        if last_checkpoint(work_dir, name) is not None:
            logger.info("stage %s is finished: skipped (%s)", name, folder)
            return load_stage(recipe, name, prepared, work_dir)
        logger.warning("stage %s was finished, but its last checkpoint is gone: the stage is trained again", name)
    start = None if newest is not None else _start_of(recipe, name, work_dir, prepared.text_tokenizer)
    before = stage if start is None else recipe.stages[stage.init]
    same = before.model_transforms == stage.model_transforms  # else weights are loaded before the transforms
    begin = None if same else partial(begin_with, start, before=before, stage=stage)
    shared = _fresh_model(recipe, name, prepared, shared=True, begin=begin)
    model = unwrap(shared)
    if newest is not None:
        tell_changes(_load_checkpoint(recipe, name, prepared, work_dir, newest, model), stage)
    elif start is not None:
        if same:
            load_start(start, model)
        _require_prepared(prepared, model, name)
        logger.info("stage %s starts from %s", name, start)

    if is_main_process():
        (folder / DONE).unlink(missing_ok=True)
    meta = dict(
        stage=name,
        config=identity(recipe.stages[name], prepared.text_tokenizer),
        start=checkpoint.read_meta(newest)["start"] if newest is not None else start_digest(recipe, name, work_dir),
        frozen=checkpoint.frozen_fingerprints(model),
        architecture=architecture(model, stage.model.to_dict()),
        last_tap=LAST_TAP,
    )
    runner = build_runner(stage, name, shared, prepared, work_dir, meta)
    if newest is not None:
        _restore(runner, newest)
        logger.info("stage %s goes on from step %d of %d (%s)", name, runner.iter, runner.max_iters, newest)
        if resume_from is not None and is_main_process():
            checkpoint.set_aside_later(resume_from)
    begin = time.perf_counter()
    runner.train()
    if is_main_process():
        where = dict(machine(model.device), processes=get_world_size())
        done = dict(steps=runner.max_iters, seconds=round(time.perf_counter() - begin, 1), machine=where)
        replace_text(folder / DONE, json.dumps(done, indent=1) + "\n")
    wait()
    return shared


def load_stage(recipe: Recipe, name: str, prepared: Prepared, work_dir: Path, *, averaged: bool = False):
    """Load the model of a finished stage, with the weights of its last checkpoint, or with their averages.

    Raises ``ValueError`` if the checkpoint is gone, or belongs to another configuration or to other frozen weights.
    """
    folder = finished_averages(work_dir, name) if averaged else finished_checkpoint(work_dir, name)
    model = _fresh_model(recipe, name, prepared)
    _load_checkpoint(recipe, name, prepared, work_dir, folder, model)
    return model


def _load_checkpoint(recipe: Recipe, name: str, prepared: Prepared, work_dir: Path, folder: Path, model) -> dict:
    """Check a checkpoint and load its weights. Returns the settings that have changed, see `check_same_config`."""
    different = check_same_config(folder, identity(recipe.stages[name], prepared.text_tokenizer))
    _check_start(folder, recipe, name, work_dir)
    if other_places(different, "model"):
        _require_same_architecture(folder, model, prepared.recipe.stages[name].model.to_dict())
    require_same_taps(folder, model)
    checkpoint.check_frozen(folder, model)
    checkpoint.load_weights(folder, model)
    _require_prepared(prepared, model, name)
    return different


def _require_same_architecture(folder: Path, model: nn.Module, config: dict) -> None:
    """Raise ``ValueError`` if the files of a model are at another place now and have other settings than before."""
    there = checkpoint.read_meta(folder).get("architecture")
    if there is None:
        raise ValueError(
            f"{folder} does not say which settings its model's files had: name the same files as before in the config"
        )
    here = architecture(model, config)
    if different := [part for part in here if here[part] != there.get(part)]:
        raise ValueError(
            f"{folder} was made with other settings of {', '.join(different)} than in the files that the config names "
            "now: name the same files as before"
        )


def _require_prepared(prepared: Prepared, model: nn.Module, name: str) -> None:
    """Raise ``ValueError`` if the cache holds outputs of other weights than the model's. Every process calls it."""
    parts = model.components() if prepared.cache(prepared.recipe.stages[name]) is not None else {}
    for part, fingerprint in prepared.fingerprints.items():
        if part in parts and (own := fingerprint_of(parts[part])) != fingerprint:
            raise ValueError(
                f"stage {name}: the {part} of the model ({own}) is not the one whose outputs data.cache holds "
                f"({fingerprint}): set data.cache=False, or give this part weights from a file in its config"
            )


def _fresh_model(
    recipe: Recipe, name: str, prepared: Prepared, *, shared: bool = False, begin: Callable | None = None
) -> nn.Module:
    """Build the model of a stage, before its checkpoints are loaded: from the config, or from the folder ``init``.

    begin: a function that gives it its first weights, before its transforms. shared: for training, so that it is
    compiled and in its wrapper for several processes, if the config says so.
    """
    stage = prepared.recipe.stages[name]
    device, wrapper = build_device(stage.runtime.device), stage.parallel if shared else None
    folder = local_model(init := recipe.stages[name].init)
    defers = wrapper is not None and getattr(MODEL_WRAPPERS.get(wrapper.type), "defers", False)
    if folder is not None:
        begin = partial(start_from, folder=folder, cached=prepared.cache(stage) is not None)
        logger.info("stage %s starts from %s", name, init)
    defers = defers and begin is None and not stage.model_transforms  # transforms need the weights
    model = build_model(stage, prepared.text_tokenizer.num_ids, defer_llm=defers, begin=begin)
    _require_prepared(prepared, model, name)
    if wrapper is None:
        model.to(device)
    use_attention(model, stage.runtime.get("attention", AUTO), PRECISIONS[stage.optim.precision], device)
    if shared:
        fit_memory(stage, model, device)
    if shared and stage.runtime.get("compile"):
        compile_blocks(model)  # after activation checkpointing, before FSDP
    if wrapper is not None:
        model = MODEL_WRAPPERS.build(wrapper, default_args=dict(module=model, device=device))
    packs, rules = stage.data.get("pack"), not unwrap(model).all_causal
    if shared and (packs or rules):
        with full_params(model) as full, uncompiled():
            if packs:
                check_isolation(full.llm, PRECISIONS[stage.optim.precision])
            if rules:
                check_rules(full.llm)
    return model


def finished_model(recipe: Recipe, name: str, text_tokenizer, work_dir: Path, *, averaged: bool = False) -> tuple:
    """Return the model of a finished stage, and the stage as it ran. Only the work dir is needed, no data or cache.

    averaged: with the averages of its weights, see ``runtime.ema``."""
    frozen = checkpoint.read_meta(finished_checkpoint(work_dir, name))["frozen"]
    folders = {}
    for target in (entry["name"] for entry in recipe.targets() if "fit" in entry):
        if f"tokenizer.{target}" in frozen:
            fitted = frozen[f"tokenizer.{target}"]["source"]
            folders[target] = str((work_dir / "tokenizers" / Path(fitted).name).absolute())
    here = recipe.with_fitted(folders)
    model = load_stage(recipe, name, Prepared(here, text_tokenizer), work_dir, averaged=averaged)
    return model, here.stages[name]


def recover(work_dir: Path, names: list[str], resume_from: Path | None) -> None:
    """Repair the folders of these stages after a killed process or a bad disk. Every process calls it.

    Unfinished folders are removed or brought back. Damaged checkpoints that are newer than all others are renamed, so
    that a stage goes on from the newest complete one. This is not done for the stage of ``resume_from``, which goes on
    from that checkpoint.
    """
    for name in names:
        folder = work_dir / name / "checkpoints"
        if is_main_process():
            checkpoint.clean(work_dir / name)
            checkpoint.clean(folder)
        wait()
        if resume_from is None or resume_from.parent != folder.resolve():
            checkpoint.set_aside_damaged(folder)


def check_run(recipe: Recipe, names: list[str], text_tokenizer, work_dir: Path) -> None:
    """Raise ``ValueError`` if a stage's newest checkpoint in ``work_dir`` belongs to another configuration.

    It is called before anything there is overwritten."""
    for name in names:
        if (newest := checkpoint.newest(work_dir / name / "checkpoints")) is not None:
            _require_same_run(newest, recipe.stages[name], text_tokenizer)
            _check_start(newest, recipe, name, work_dir)


def _restore(runner: Runner, folder: Path) -> None:
    """Load optimiser, schedule, position in the data and random states. The weights are loaded already."""
    _require_same_data(folder, runner.train_dataloader.dataset)
    meta = checkpoint.read_meta(folder)
    state = checkpoint.load_state(folder, unwrap(runner.model), runner.optim_wrapper.optimizer)
    for scheduler, values in zip(runner.param_schedulers, state["schedulers"], strict=True):
        scheduler.load_state_dict(values)
    hooks = stateful(runner.hooks)
    for name in hooks.keys() & state["hooks"].keys():
        hooks[name].load_state_dict(state["hooks"][name])
    for name in sorted((hooks.keys() ^ state["hooks"].keys()) - {"ValidationHook"}):  # this one may be added or removed
        if name in hooks:
            logger.warning("goes on with hook %s; the checkpoint has no state of it, so it starts without one", name)
        else:
            logger.warning("goes on without hook %s; its state is dropped", name)
    runner.train_loop.iter = meta["step"]
    restore_random_states(state["random"], seed=runner.seed, step=meta["step"])


def _require_same_run(folder: Path, stage: Stage, text_tokenizer) -> None:
    """Raise ``ValueError`` if a checkpoint was made with another configuration, or if its data are at another place now
    and have changed."""
    if other_places(check_same_config(folder, identity(stage, text_tokenizer)), "data.train"):
        dataset = DATASETS.build(stage.data.train)
        _require_same_data(folder, dataset, moved=True)
        _require_same_images(folder, dataset)


def _require_same_images(folder: Path, dataset) -> None:
    there = checkpoint.read_meta(folder).get("images")
    if there is None:
        logger.warning("%s does not say which images it was trained on: those of data.train are not compared", folder)
    elif image_digest(dataset) != there:
        why = first_refused(dataset)
        raise ValueError(
            f"{folder} was trained on other images than those at the place that data.train names now"
            + (f" ({why})" if why else "")
            + ". Put the same images there, or start from the beginning with --resume never"
        )


def _require_same_data(folder: Path, dataset, *, moved: bool = False) -> None:
    """Raise ``ValueError`` if the data set is not the one of a checkpoint. moved: its files are at another place now,
    so a fingerprint is needed to compare it."""
    meta, now = checkpoint.read_meta(folder), (len(dataset), data_fingerprint(dataset))
    if now != (meta["samples"], meta["data"]) or (moved and now[1] is None):
        raise ValueError(
            f"{folder} was trained on other data: {meta['samples']} samples ({meta['data']}), but data.train has "
            f"{now[0]} ({now[1]}) now. Put the old data back, or start from the beginning with --resume never"
        )


def _start_of(recipe: Recipe, name: str, work_dir: Path, text_tokenizer) -> Path | None:
    """The last checkpoint of the stage that this stage starts from. None if it does not start from a stage."""
    init = recipe.stages[name].init
    if init == SCRATCH or is_model_folder(init):
        return None
    require_start(recipe, name, work_dir)
    start = last_checkpoint(work_dir, init)
    if start is None:
        raise ValueError(
            f"stage {name!r} starts from stage {init!r}, whose last checkpoint is gone: run stage {init!r} again"
        )
    _require_same_run(start, recipe.stages[init], text_tokenizer)
    return start


def _check_start(folder: Path, recipe: Recipe, name: str, work_dir: Path) -> None:
    now = start_digest(recipe, name, work_dir)
    if now is not None and checkpoint.read_meta(folder)["start"] != now:
        raise ValueError(
            f"{folder} was trained from weights of {recipe.stages[name].init!r} that have been replaced: "
            f"train this stage again with --stage {name} --resume never"
        )
