"""What ``tools/train.py`` does: check, prepare, train stage after stage, evaluate, draw the summary."""

import json
from pathlib import Path

from mmengine.config import Config

from asvr.config import dump_config, is_model_folder, load_config, stage_config
from asvr.data.text_tokenizer import check_saving
from asvr.engine.build import build_dataset, build_device, check_data, check_workers, data_fingerprint
from asvr.engine.checkpoint_folder import PREFIX
from asvr.engine.interruption import interruptible
from asvr.engine.log import logger, set_up_logging
from asvr.engine.parallel import gathered
from asvr.engine.prepare import Prepared, prepare
from asvr.engine.processes import get_world_size, is_main_process, main_first, processes, wait
from asvr.engine.stages import (
    check_run,
    load_stage,
    recover,
    require_finished,
    require_start,
    run_stage,
    weights_digest,
)
from asvr.evaluation.accuracy import evaluate, report
from asvr.evaluation.summary import draw_summary
from asvr.figures import optional
from asvr.folders import replace_text, replaced_folder, sha256_of
from asvr.preflight import preflight
from asvr.pretrained import load, why_no_model
from asvr.profiling.memory import warn_of_memory
from asvr.registry import TEXT_TOKENIZERS
from asvr.validate import check_config

RESULTS, SUMMARY = "results.json", "summary.png"
AUTO, NEVER = "auto", "never"


@interruptible()
def run(cfg: Config, work_dir: Path, *, only: str | None = None, resume: str = AUTO) -> dict:
    """Run all stages of a config, or ``only`` one; return the results by stage.

    resume: ``auto`` goes on where ``work_dir`` stands; ``never`` starts anew and keeps what was there beside it;
    a folder goes on from that checkpoint. Of several processes the first one writes all files. Raises
    `asvr.engine.interruption.Interrupted` where a signal ends it.
    """
    check_config(cfg)
    with processes(cfg, list(cfg.stages) if only not in cfg.stages else [only]):
        return _run(cfg, work_dir, only, resume)


def _run(cfg: Config, work_dir: Path, only: str | None, resume: str) -> dict:
    stages = list(cfg.stages)
    if only is not None and only not in stages:
        raise ValueError(f"--stage {only}: the config has no such stage; expected one of {stages}")
    chosen = stages if only is None else [only]
    num_image_tokens = preflight(cfg, chosen)
    text_tokenizer = TEXT_TOKENIZERS.build(cfg.text_tokenizer)
    check_saving(text_tokenizer)
    check_data(cfg, text_tokenizer, num_image_tokens)
    check_workers(cfg, text_tokenizer, chosen)
    checkpoint = _named_checkpoint(resume, work_dir, chosen)
    if resume == NEVER and is_main_process():
        _set_aside(work_dir if only is None else work_dir / only)
    wait()
    if only is not None:
        require_start(cfg, only, work_dir)
    set_up_logging(work_dir / "train.log")
    recover(work_dir, chosen, checkpoint)
    check_run(cfg, chosen, text_tokenizer, work_dir)
    if get_world_size() == 1:
        warn_of_memory(cfg, build_device(cfg.runtime.device), chosen)
    if is_main_process():
        dump_config(cfg, work_dir / "config.py")
        with replaced_folder(work_dir / "text_tokenizer") as folder:  # for whoever loads the model later
            text_tokenizer.save_pretrained(folder)
    with main_first():
        prepared = prepare(cfg, work_dir, text_tokenizer)
    for name in chosen:
        start = checkpoint if checkpoint is not None and checkpoint.parent.parent.name == name else None
        model = run_stage(cfg, name, prepared, work_dir, start)
        if stage_config(cfg, name).get("evaluation"):
            with gathered(model) as whole:
                if is_main_process():
                    _evaluate_stage(cfg, name, whole, prepared, work_dir)
                wait()
        del model  # before the next stage's is built
    results = _read(work_dir / RESULTS)
    for name, result in results.items():
        logger.info("%s: %s", name, report(result))
    if is_main_process() and (work_dir / "metrics.jsonl").is_file():
        with optional(work_dir / SUMMARY):
            draw_summary(work_dir, results)
        files = [work_dir / name for name in (SUMMARY, "metrics.jsonl", RESULTS)]
        logger.info("written: %s", ", ".join(str(file) for file in files if file.is_file()))
    return results


def _evaluate_stage(cfg: Config, name: str, model, prepared: Prepared, work_dir: Path) -> None:
    """A result is kept while the weights and the settings that it was made with are the same."""
    stage = stage_config(cfg, name)
    results = _read(work_dir / RESULTS)
    settings = dict(stage.evaluation)
    dataset = _questions(settings.pop("dataset"), stage, model, prepared)
    made_with = dict(
        weights=weights_digest(work_dir, name),
        data=data_fingerprint(dataset),
        settings=json.loads(json.dumps(stage.evaluation.to_dict())),
    )
    if results.get(name, {}).get("made_with") != made_with:
        result = _evaluate(stage, model, prepared, dataset, settings, work_dir / name / "answers.jsonl")
        _write_json(work_dir / RESULTS, results | {name: result | dict(made_with=made_with)})


def _questions(config: dict, stage: Config, model, prepared: Prepared):
    return build_dataset(config, stage.data, prepared.text_tokenizer, model.encoder.num_tokens)


def _evaluate(stage: Config, model, prepared: Prepared, dataset, settings: dict, samples_file: Path) -> dict:
    return evaluate(
        model,
        dataset,
        prepared.text_tokenizer,
        data=stage.data,
        cache=prepared.cache,
        samples_file=samples_file,
        precision=stage.optim.precision,
        **settings,
    )


def evaluate_run(
    cfg: Config,
    work_dir: Path,
    *,
    stage: str | None,
    questions: Path | None,
    image_folder: Path,
    limit: int | None,
    out: Path | None,
) -> dict:
    """Evaluate the trained model of ``stage`` (None: the last) on ``questions``, or on the config's own data.

    Writes ``result.json`` and ``answers.jsonl`` to ``out`` (None: ``evaluation`` in the work dir, or a folder in that
    with the name of the questions' file); raises ``ValueError`` where the stage is not finished.
    """
    name = stage or list(cfg.stages)[-1]
    preflight(cfg, [name])
    settings = dict(stage_config(cfg, name).get("evaluation") or {})
    if questions is not None:
        settings["dataset"] = dict(type="LlavaDataset", ann_file=str(questions), image_folder=str(image_folder))
        settings.pop("limit", None)  # of the config's own questions
    if "dataset" not in settings:
        raise ValueError("no questions: give --questions FILE, or `evaluation` in the config")
    out = out or work_dir / "evaluation" / (questions.stem if questions is not None else "")
    _refuse_others(out, questions)
    require_finished(work_dir, name)
    set_up_logging(out / "evaluate.log")
    text_tokenizer = TEXT_TOKENIZERS.build(cfg.text_tokenizer)
    check_run(cfg, [name], text_tokenizer, work_dir)
    prepared = prepare(cfg, work_dir, text_tokenizer)
    if questions is not None:
        prepared.cache = None  # it holds the pictures of the config's own data
    model, config = load_stage(cfg, name, prepared, work_dir), stage_config(cfg, name)
    if limit is not None:
        settings["limit"] = limit
    dataset = _questions(settings.pop("dataset"), config, model, prepared)
    result = _evaluate(config, model, prepared, dataset, settings, out / "answers.jsonl")
    asked = dict(stage=name, limit=settings.get("limit")) | _of_file(questions)
    return _keep(result | dict(asked=asked), out, name)


def evaluate_folder(
    folder: Path, *, stage: str | None, questions: Path | None, image_folder: Path, limit: int | None, out: Path | None
) -> dict:
    """`evaluate_run` on a run's work dir with its own config, or on a saved model, which needs ``questions``."""
    if not is_model_folder(folder):
        if not (folder / "config.py").is_file():
            raise ValueError(why_no_model(folder))
        asked = dict(questions=questions, image_folder=image_folder, limit=limit, out=out)
        return evaluate_run(load_config(folder / "config.py"), folder, stage=stage, **asked)
    if questions is None:
        raise ValueError(f"{folder}: a saved model has no questions of its own: give --questions FILE, or --tasks")
    own = load(folder, stage=stage)
    if own.text_tokenizer is None:
        raise ValueError(f"{folder}: this model has no text tokenizer: import it again with --text-tokenizer FOLDER")
    positions = getattr(own.model.llm, "max_positions", None)
    data = Config(dict(template=own.template, image_aspect=own.image_aspect, max_length=positions, on_error="raise"))
    ask = dict(type="LlavaDataset", ann_file=str(questions), image_folder=str(image_folder))
    dataset = build_dataset(ask, data, own.text_tokenizer, own.model.encoder.num_tokens)
    out = out or folder / "evaluation" / questions.stem
    _refuse_others(out, questions)
    set_up_logging(out / "evaluate.log")
    result = evaluate(
        own.model,
        dataset,
        own.text_tokenizer,
        data=data,
        samples_file=out / "answers.jsonl",
        precision=own.precision,
        limit=limit,
    )
    return _keep(result | dict(asked=dict(limit=limit) | _of_file(questions)), out, str(folder))


def _refuse_others(out: Path, questions: Path | None) -> None:
    """Raise ``ValueError`` where ``out`` holds the answers to another file, of the same name and from another place."""
    there = _read(out / "result.json").get("asked", {})
    if questions is None or there.get("file") is None:
        return
    here = _of_file(questions)
    if there["file"] != here["file"] and there["questions"] != here["questions"]:
        raise ValueError(
            f"{out} holds the answers to {there['file']}: give this file another name, or remove that folder"
        )


def _of_file(questions: Path | None) -> dict:
    if questions is None:
        return dict(questions=None, file=None)
    return dict(questions=sha256_of(questions), file=str(questions.absolute()))


def _keep(result: dict, out: Path, name: str) -> dict:
    _write_json(out / "result.json", result)
    logger.info("%s: %s", name, report(result))
    logger.info("written: %s", out)
    return result


def _write_json(file: Path, value: dict) -> None:
    replace_text(file, json.dumps(value, indent=1) + "\n")


def _read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _named_checkpoint(resume: str, work_dir: Path, stages: list[str]) -> Path | None:
    if resume in (AUTO, NEVER):
        return None
    folder = Path(resume).resolve()
    if not (folder / "checkpoint.json").is_file():
        raise ValueError(f"--resume {resume}: expected 'auto', 'never' or a checkpoint folder (…/checkpoints/step_…)")
    if not folder.name.startswith(PREFIX):
        raise ValueError(f"--resume {resume}: expected a folder {PREFIX}N; rename one that was set aside to that first")
    if work_dir.resolve() not in folder.parents:
        raise ValueError(f"--resume {resume} is not a checkpoint of {work_dir}: name its run with --work-dir")
    if folder.parent.parent.name not in stages:
        raise ValueError(f"--resume {resume} is not a checkpoint of a stage that is to run: {', '.join(stages)}")
    return folder


def _set_aside(work_dir: Path) -> None:
    """Rename an existing run (or one stage of it) to ``<name>.old-<n>``: nothing is deleted."""
    if work_dir.exists():
        n = 1
        while (old := work_dir.with_name(f"{work_dir.name}.old-{n}")).exists():
            n += 1
        work_dir.rename(old)
