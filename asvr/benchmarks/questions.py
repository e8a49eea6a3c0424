"""Ask a run or a saved model the questions of a file. ``asvr evaluate`` does this without public benchmarks."""

from pathlib import Path

from mmengine.config import Config

from asvr.base.files import sha256_of
from asvr.base.hub_model import find_model, results_home
from asvr.base.log import logger, set_up_logging
from asvr.engine.finished import require_finished
from asvr.engine.prepare import prepare
from asvr.engine.run import build_questions, evaluate_stage, read_json_file, write_json
from asvr.engine.stages import check_run, load_stage
from asvr.evaluation.accuracy import evaluate, report
from asvr.loading import load
from asvr.models.transforms import without_transforms
from asvr.recipe.build import build_dataset
from asvr.recipe.config import is_model_folder, load_config
from asvr.recipe.model_folder import why_no_model
from asvr.recipe.preflight import preflight
from asvr.recipe.recipe import Recipe
from asvr.registry import TEXT_TOKENIZERS


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

    Writes ``result.json`` and ``answers.jsonl`` to ``out``. None means ``evaluation`` in the work dir, or a folder in
    it with the name of the questions' file. Raises ``ValueError`` if the stage is not finished.
    """
    recipe = Recipe(cfg)
    name = recipe.stage(stage).name
    preflight(recipe.only(name))
    settings = dict(recipe.stages[name].evaluation or {})
    if questions is not None:
        settings["dataset"] = dict(type="LlavaDataset", ann_file=str(questions), image_folder=str(image_folder))
        settings.pop("limit", None)  # the limit is for the config's own questions
    if "dataset" not in settings:
        raise ValueError("no questions: give --questions FILE, or `evaluation` in the config")
    out = out or work_dir / "evaluation" / (questions.stem if questions is not None else "")
    _refuse_others(out, questions)
    require_finished(work_dir, name)
    set_up_logging(out / "evaluate.log")
    text_tokenizer = TEXT_TOKENIZERS.build(recipe.text_tokenizer)
    check_run(recipe, [name], text_tokenizer, work_dir)
    prepared = prepare(recipe, work_dir, text_tokenizer)
    if questions is not None:
        prepared.caches.clear()  # they hold the images of the config's own data
    model, config = load_stage(recipe, name, prepared, work_dir), recipe.stages[name]
    if limit is not None:
        settings["limit"] = limit
    dataset = build_questions(settings.pop("dataset"), config, model, prepared)
    with without_transforms(model):
        result = evaluate_stage(config, model, prepared, dataset, settings, out / "answers.jsonl")
    asked = dict(stage=name, limit=settings.get("limit")) | _of_file(questions)
    return _keep(result | dict(asked=asked), out, name)


def evaluate_folder(
    folder: Path,
    *,
    stage: str | None,
    questions: Path | None,
    image_folder: Path,
    limit: int | None,
    out: Path | None,
    trust_custom_imports: bool = False,
) -> dict:
    """Evaluate a run's work dir with its own config (see `evaluate_run`), or a saved model, which needs ``questions``.

    folder: a folder, or the name of a model on the Hub, see `asvr.load`. The results of a model on the Hub go to
    ``work_dirs/<name>``.
    """
    name, folder = folder, find_model(folder)
    if not is_model_folder(folder):
        if not (folder / "config.py").is_file():
            raise ValueError(why_no_model(folder))
        asked = dict(questions=questions, image_folder=image_folder, limit=limit, out=out)
        return evaluate_run(load_config(folder / "config.py"), folder, stage=stage, **asked)
    if questions is None:
        raise ValueError(f"{folder}: a saved model has no questions of its own: give --questions FILE, or --tasks")
    own = load(folder, stage=stage, trust_custom_imports=trust_custom_imports)
    if own.text_tokenizer is None:
        raise ValueError(f"{folder}: this model has no text tokenizer: import it again with --text-tokenizer FOLDER")
    positions = getattr(own.model.llm, "max_positions", None)
    data = Config(dict(template=own.template, image_aspect=own.image_aspect, max_length=positions, on_error="raise"))
    ask = dict(type="LlavaDataset", ann_file=str(questions), image_folder=str(image_folder))
    dataset = build_dataset(ask, data, own.text_tokenizer, own.model.layout.per_image)
    out = out or results_home(name, folder) / "evaluation" / questions.stem
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
    return _keep(result | dict(asked=dict(limit=limit) | _of_file(questions)), out, str(name))


def _refuse_others(out: Path, questions: Path | None) -> None:
    """Raise ``ValueError`` if ``out`` holds the answers to another file with the same name."""
    there = read_json_file(out / "result.json").get("asked", {})
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
    write_json(out / "result.json", result)
    logger.info("%s: %s", name, report(result))
    logger.info("written: %s", out)
    return result
