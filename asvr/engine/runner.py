"""Builds MMEngine's Runner for one stage of a config."""

import copy
import time
from collections.abc import Callable
from pathlib import Path

from mmengine.runner import Runner

from asvr.base.distributed import get_world_size, is_main_process
from asvr.base.log import logger
from asvr.data.image_digest import image_digest
from asvr.data.mixture import Mixture
from asvr.engine.hooks import (
    AverageHook,
    CheckpointHook,
    ProgressHook,
    SignalHook,
    SkipHook,
    TraceHook,
    ValidationHook,
)
from asvr.engine.hooks.checkpoint import stateful
from asvr.engine.hooks.visualizer import VisualizerHook
from asvr.engine.optim import build_optim_wrapper
from asvr.engine.parallel import unwrap
from asvr.engine.prepare import Prepared
from asvr.engine.schedules import build_schedulers
from asvr.engine.trackers import Trackers, draw_samples
from asvr.evaluation.accuracy import evaluate
from asvr.evaluation.metrics import ACCURACY, DEFAULT, ExactMatch
from asvr.flops.step import step_flops
from asvr.recipe.build import (
    build_collate,
    build_dataset,
    build_train_loader,
    data_fingerprint,
    num_steps,
    pack_limits,
)
from asvr.recipe.recipe import Stage
from asvr.registry import METRICS

DEFAULT_MAX_SKIPPED = 10


def build_runner(stage: Stage, name: str, shared, prepared: Prepared, work_dir: Path, meta: dict) -> Runner:
    """Build the runner of a stage. shared: the model, or its wrapper (`asvr.engine.parallel`) for several processes."""
    model, several, tokenizer = unwrap(shared), get_world_size() > 1, prepared.text_tokenizer
    folder, data, runtime, cache = work_dir / name, stage.data, stage.runtime, prepared.cache(stage)
    dataset = build_dataset(data.train, data, tokenizer, model.layout.per_image)
    steps = num_steps(stage, len(dataset))
    optim_wrapper, flops = build_optim_wrapper(model, stage.optim), step_flops(stage)
    images = image_digest(dataset) if is_main_process() else None  # only the main process writes checkpoint.json
    meta = meta | dict(samples=len(dataset), data=data_fingerprint(dataset), images=images)
    trackers = Trackers(stage.visualizer, folder)
    experiment = f"{name}_{time.time_ns()}"  # MMEngine's own name can be the same for two runs in one second
    logger.info(
        "stage %s: %d samples, %d steps of %d, training %s", name, len(dataset), steps, data.global_batch, stage.train
    )
    runner = Runner(
        model=shared,
        launcher="pytorch" if several else "none",
        work_dir=str(folder / "mmengine"),
        experiment_name=experiment,
        train_dataloader=build_train_loader(
            stage,
            dataset,
            build_collate(data, model, tokenizer, cache, packed=pack_limits(data) is not None, trains=True),
            cost=None if flops is None else flops.cost(encodes=data.get("cache") is not True),
        ),
        train_cfg=dict(type="StepLoop", steps=steps),
        optim_wrapper=optim_wrapper,
        param_scheduler=build_schedulers(optim_wrapper, stage.schedule, steps),
        default_hooks=dict(runtime_info=None, timer=None, sampler_seed=None, logger=None, checkpoint=None),
        custom_hooks=[
            *copy.deepcopy(stage.custom_hooks or []),  # a copy, since MMEngine changes them; before the library's own
            SkipHook(stage=name, interval=runtime.log_interval, limit=runtime.get("max_skipped", DEFAULT_MAX_SKIPPED)),
            ProgressHook(
                file=str(work_dir / "metrics.jsonl"),
                stage=name,
                interval=runtime.log_interval,
                flops=flops,
                drawn=_drawn(dataset, data.global_batch, runtime.seed),
            ),
            CheckpointHook(
                folder=str(folder / "checkpoints"),
                interval=runtime.checkpoint_interval,
                keep=runtime.keep_checkpoints,
                meta=meta,
                asynchronous=runtime.get("async_checkpoint", True),
            ),
            *_validation(stage, name, model, prepared, work_dir, meta),
            *([AverageHook(decay=runtime.ema.decay, folder=str(folder), meta=meta)] if runtime.get("ema") else []),
            SignalHook(),
            *_profile(stage, folder),
            *([VisualizerHook(trackers=trackers, stage=stage)] if stage.visualizer else []),
        ],
        visualizer=trackers.visualizer,
        randomness=dict(seed=runtime.seed, diff_rank_seed=several),
        default_scope="asvr",
        log_level="WARNING",
    )
    stateful(runner.hooks)  # raises an error before the first step if a hook cannot be saved
    return runner


def _drawn(dataset, batch: int, seed: int) -> Callable[[int], dict[str, int]] | None:
    """For a mixture, a function that counts the samples of each source up to a step; else None."""
    return (lambda step: dataset.drawn(step * batch, seed)) if isinstance(dataset, Mixture) else None


def _best(stage: Stage) -> str | None:
    """The name of the number that chooses the best weights. The default is the accuracy, if a metric gives it."""
    metrics = stage.validation.get("metrics", DEFAULT)
    if best := stage.validation.get("best"):
        return best
    if any(issubclass(METRICS.get(entry["type"]), ExactMatch) for entry in metrics):
        return ACCURACY
    logger.warning(
        "validation.best is not set, and no metric of stage %s gives an accuracy: no best weights are kept", stage.name
    )
    return None


def _profile(stage: Stage, folder: Path) -> list:
    if not (settings := stage.runtime.get("profile")):
        return []
    first, last = settings.steps
    own = dict(folder=str(folder / "profile"), stage=stage.name, first=first, last=last)
    return [TraceHook(memory=settings.get("memory", False), **own)]


def _validation(stage: Stage, name: str, model, prepared: Prepared, work_dir: Path, meta: dict) -> list:
    if not stage.validation:
        return []
    settings = dict(stage.validation)
    interval, config, best = settings.pop("interval"), settings.pop("dataset"), _best(stage)
    settings.pop("best", None)
    dataset = build_dataset(config, stage.data, prepared.text_tokenizer, model.layout.per_image)

    def validate(model) -> dict:
        result = evaluate(
            model,
            dataset,
            prepared.text_tokenizer,
            data=stage.data,
            cache=prepared.cache(stage),
            samples_file=work_dir / name / "validation.jsonl",
            precision=stage.optim.precision,
            num_examples=0,
            **settings,
        )
        return dict(result, images=draw_samples(stage, model, prepared.text_tokenizer, dataset))

    file, folder = str(work_dir / "validation.jsonl"), str(work_dir / name)
    own = dict(file=file, folder=folder, stage=name, interval=interval, meta=meta, by=best)
    return [ValidationHook(validate=validate, **own)]
