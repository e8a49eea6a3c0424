"""Runs ``asvr train``: checks, prepares, trains all stages, evaluates them, and draws the summary."""

import json
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from asvr.base.distributed import get_world_size, is_main_process, main_first, processes, wait
from asvr.base.files import replace_text, replaced_folder
from asvr.base.hub_model import local_model
from asvr.base.interruption import interruptible
from asvr.base.log import logger, set_up_logging
from asvr.base.plots import optional
from asvr.base.shares import by_main
from asvr.data.text_tokenizer import check_saving
from asvr.engine.checkpoint import load_weights, read_meta, weights_digest
from asvr.engine.checkpoint_folder import PREFIX
from asvr.engine.finished import EMA, finished_at, finished_checkpoint, require_start
from asvr.engine.hooks.visualizer import log_evaluation
from asvr.engine.parallel import answering, unwrap
from asvr.engine.prepare import Prepared, prepare
from asvr.engine.stages import check_run, recover, run_stage
from asvr.engine.trackers import Trackers, draw_samples
from asvr.evaluation.accuracy import evaluate, report
from asvr.evaluation.metrics import check_metrics
from asvr.evaluation.summary import draw_summary
from asvr.flops.host_memory import warn_of_host_memory
from asvr.flops.memory import warn_of_memory
from asvr.models.transforms import require_device, require_parallel
from asvr.recipe.build import build_dataset, build_device, check_data, check_workers, data_fingerprint
from asvr.recipe.config import distinct, dump_config
from asvr.recipe.model_folder import require_same_text_tokenizer
from asvr.recipe.preflight import preflight
from asvr.recipe.recipe import Recipe, Stage
from asvr.recipe.trackers import require_packages
from asvr.recipe.validate import check_config
from asvr.registry import TEXT_TOKENIZERS

RESULTS, SUMMARY = "results.json", "summary.png"
AUTO, NEVER = "auto", "never"


@interruptible()
def run(
    cfg: Config, work_dir: Path, *, only: str | None = None, resume: str = AUTO, warnings: Sequence[str] = ()
) -> dict:
    """Run all stages of a config, or ``only`` one, and return the results by stage.

    resume: ``auto`` goes on from the state of ``work_dir``. ``never`` starts from the beginning, and renames the old
    run. A folder: go on from this checkpoint. warnings: those from before the run, for ``train.log``. With several
    processes, the first one writes all files. Raises `asvr.base.interruption.Interrupted` if a signal ends the run.
    """
    check_config(cfg)
    recipe = Recipe(cfg)
    stages = [recipe.stages[only]] if only in recipe.stages else recipe.stages.values()
    with processes({stage.name: stage.parallel for stage in stages}, recipe.runtime.device):
        return _run(recipe, work_dir, only, resume, warnings)


def _run(recipe: Recipe, work_dir: Path, only: str | None, resume: str, warnings: Sequence[str]) -> dict:
    if only is not None and only not in recipe.stages:
        raise ValueError(f"--stage {only}: the config has no such stage; expected one of {list(recipe.stages)}")
    running = recipe if only is None else recipe.only(only)
    chosen = list(running.stages)
    layouts = preflight(running)
    text_tokenizer = TEXT_TOKENIZERS.build(recipe.text_tokenizer)
    check_saving(text_tokenizer)
    for folder in distinct([folder for stage in running.stages.values() if (folder := local_model(stage.init))]):
        require_same_text_tokenizer(folder, text_tokenizer)
    for stage in running.stages.values():
        require_packages(stage.visualizer)
        require_device(stage.model_transforms, build_device(stage.runtime.device))
        require_parallel(stage.model_transforms, stage.parallel.type if stage.parallel else None)
    check_data(running, text_tokenizer, layouts)
    check_workers(running, text_tokenizer)
    by_main(lambda: _check_metrics(running, text_tokenizer, layouts))
    checkpoint = _named_checkpoint(resume, work_dir, chosen)
    if resume == NEVER and is_main_process():
        _set_aside(work_dir if only is None else work_dir / only)
    wait()
    if only is not None:
        require_start(recipe, only, work_dir)
    set_up_logging(work_dir / "train.log", warnings)
    recover(work_dir, chosen, checkpoint)
    check_run(recipe, chosen, text_tokenizer, work_dir)
    if get_world_size() == 1:
        warn_of_memory(running, build_device(recipe.runtime.device))
    warn_of_host_memory(running)
    if is_main_process():
        dump_config(recipe.config, work_dir / "config.py")
        with replaced_folder(work_dir / "text_tokenizer") as folder:  # for loading the model later
            text_tokenizer.save_pretrained(folder)
    with main_first():
        prepared = prepare(recipe, work_dir, text_tokenizer)
    for name in chosen:
        start = checkpoint if checkpoint is not None and checkpoint.parent.parent.name == name else None
        done = finished_at(work_dir, name)
        model = run_stage(recipe, name, prepared, work_dir, start)
        _evaluate(recipe.stages[name], model, prepared, work_dir, trained=finished_at(work_dir, name) != done)
        del model  # before the model of the next stage is built
    results = read_json_file(work_dir / RESULTS)
    for name, result in results.items():
        logger.info("%s: %s", name, report(result))
    if is_main_process() and (work_dir / "metrics.jsonl").is_file():
        with optional(work_dir / SUMMARY):
            draw_summary(work_dir, results)
        files = [work_dir / name for name in (SUMMARY, "metrics.jsonl", RESULTS)]
        logger.info("written: %s", ", ".join(str(file) for file in files if file.is_file()))
    return results


def _check_metrics(recipe: Recipe, text_tokenizer, layouts: dict) -> None:
    """Check the metrics that a config names, see `check_metrics`."""
    for name, stage in recipe.stages.items():
        for key in ("evaluation", "validation"):
            section = getattr(stage, key) or {}
            if "metrics" in section or "best" in section:
                dataset = build_dataset(section.dataset, stage.data, text_tokenizer, layouts[name].per_image)
                try:
                    check_metrics(section, dataset)
                except ValueError as error:
                    raise ValueError(f"stage {name}, {key}: {error}") from error


def _evaluate(stage: Stage, model, prepared: Prepared, work_dir: Path, *, trained: bool) -> None:
    """Evaluate the model of a finished stage, and then its averaged weights if ``runtime.ema.evaluate`` is set.

    The model has the averaged weights afterwards. Every process calls it. trained: whether the stage was trained in
    this run, so that its logs are new."""
    if not stage.evaluation:
        return
    folder, averages = finished_checkpoint(work_dir, stage.name), work_dir / stage.name / EMA
    evaluated = {stage.name: folder}
    if (stage.runtime.get("ema") or {}).get("evaluate"):
        evaluated[f"{stage.name}_{EMA}"] = averages
    for name, weights in evaluated.items():
        if weights == averages:
            load_weights(averages, unwrap(model))
        with answering(model) as full:
            made = _keep_evaluation(stage, name, weights, full, prepared, work_dir)
            if is_main_process() and stage.visualizer and (made or trained):
                _log_evaluation(stage, name, read_meta(weights)["step"], full, prepared, work_dir)
            wait()


def _log_evaluation(stage: Stage, name: str, step: int, model, prepared: Prepared, work_dir: Path) -> None:
    result = read_json_file(work_dir / RESULTS)[name]
    result = {key: value for key, value in result.items() if key not in ("examples", "made_with")}
    dataset = build_questions(stage.evaluation.dataset, stage, model, prepared)
    images = draw_samples(stage, model, prepared.text_tokenizer, dataset)
    kind = name.replace(stage.name, "evaluation", 1)
    log_evaluation(Trackers(stage.visualizer, work_dir / stage.name), stage, kind, result, images, step)


def _keep_evaluation(stage: Stage, name: str, weights: Path, model, prepared: Prepared, work_dir: Path) -> bool:
    """Evaluate a stage, unless there is a result of the same weights, data and settings. Returns whether it was made.

    name: the name of the result. All processes call it."""
    results = by_main(lambda: read_json_file(work_dir / RESULTS))
    settings = dict(stage.evaluation)
    dataset = build_questions(settings.pop("dataset"), stage, model, prepared)
    made_with = dict(
        weights=weights_digest(weights),
        data=data_fingerprint(dataset),
        settings=json.loads(json.dumps(stage.evaluation.to_dict())),
    )
    if results.get(name, {}).get("made_with") != made_with:
        file = work_dir / stage.name / ("answers.jsonl" if name == stage.name else f"answers_{EMA}.jsonl")
        result = evaluate_stage(stage, model, prepared, dataset, settings, file)
        if is_main_process():
            write_json(work_dir / RESULTS, results | {name: result | dict(made_with=made_with)})
        wait()
        return True
    return False


def build_questions(config: dict, stage: Stage, model, prepared: Prepared):
    return build_dataset(config, stage.data, prepared.text_tokenizer, model.layout.per_image)


def evaluate_stage(stage: Stage, model, prepared: Prepared, dataset, settings: dict, samples_file: Path) -> dict:
    return evaluate(
        model,
        dataset,
        prepared.text_tokenizer,
        data=stage.data,
        cache=prepared.cache(stage),
        samples_file=samples_file,
        precision=stage.optim.precision,
        **settings,
    )


def write_json(file: Path, value: dict) -> None:
    replace_text(file, json.dumps(value, indent=1) + "\n")


def read_json_file(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _named_checkpoint(resume: str, work_dir: Path, stages: list[str]) -> Path | None:
    if resume in (AUTO, NEVER):
        return None
    folder = Path(resume).resolve()
    if not (folder / "checkpoint.json").is_file():
        raise ValueError(f"--resume {resume}: expected 'auto', 'never' or a checkpoint folder (…/checkpoints/step_…)")
    if not folder.name.startswith(PREFIX):
        raise ValueError(f"--resume {resume}: expected a folder {PREFIX}N; if a run renamed it, rename it back first")
    if work_dir.resolve() not in folder.parents:
        raise ValueError(f"--resume {resume} is not a checkpoint of {work_dir}: name its run with --work-dir")
    if folder.parent.parent.name not in stages:
        raise ValueError(f"--resume {resume} is not a checkpoint of a stage that will run: {', '.join(stages)}")
    return folder


def _set_aside(work_dir: Path) -> None:
    """Rename an existing run, or one stage of it, to ``<name>.old-<n>``. Nothing is deleted."""
    if work_dir.exists():
        n = 1
        while (old := work_dir.with_name(f"{work_dir.name}.old-{n}")).exists():
            n += 1
        work_dir.rename(old)
