"""Collects facts about the training of a model from its work dir, for ``training.json`` of a saved model.

The file is shared with the model. So it has no paths of this machine: only the last part of a path is kept.
"""

import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asvr.base.hub_model import local_model, may_be_on_hub
from asvr.engine import checkpoint
from asvr.engine.finished import DONE, EMA, last_checkpoint, weights_digest
from asvr.models.component import WEIGHT_FIELDS
from asvr.recipe.components import vision_parts
from asvr.recipe.recipe import Recipe, Stage
from asvr.registry import ENCODERS, LLMS, VISUAL_TOKENIZERS

_OF_DATA = ("max_length", "image_aspect", "pack", "group")  # fields of `data` for a model card
DATA_FILES = (".json", ".jsonl", ".parquet", ".arrow", ".tar", ".csv", ".txt")
_OF_RESULT = ("examples", "made_with", "codes_by_place", "seconds")  # parts of a result that are left out


def training_facts(recipe: Recipe, name: str, work_dir: Path, *, averaged: bool = False) -> dict:
    """Return the facts about the model of a finished stage. Unknown facts are left out.

    averaged: whether the model has the averages of the weights, see ``runtime.ema``.
    Returns ``stages``: the stage ``name`` and the stages that it started from, the earliest first; ``parts``: the
    pretrained weights of each component; ``datasets``: the data sets of the Hub; ``results``: the evaluation of these
    weights.
    """
    names = [name]
    while (before := recipe.stages[names[0]].init) in recipe.stages:
        names.insert(0, before)
    facts = dict(
        stage=name,
        averaged=averaged,
        stages=[_stage(recipe.stages[own], work_dir) for own in names],
        parts=_parts(recipe.stages[name]),
        datasets=sorted({path for own in names for path in _on_hub_data(recipe.stages[own].data.train.to_dict())}),
    )
    results = _results(name, work_dir, averaged)
    return facts | (dict(results=results) if results else {})


def _stage(stage: Stage, work_dir: Path) -> dict:
    """The facts about one stage: settings from its config, and facts from its last checkpoint, if it is there."""
    folder, done = last_checkpoint(work_dir, stage.name), work_dir / stage.name / DONE
    done = json.loads(done.read_text(encoding="utf-8")) if done.is_file() else {}
    meta = {} if folder is None else checkpoint.read_meta(folder)
    frozen = {part: own["fingerprint"] for part, own in meta.get("frozen", {}).items() if "fingerprint" in own}
    found = dict(
        name=stage.name,
        init=public(stage.init),
        init_on_hub=True if may_be_on_hub(stage.init) and local_model(stage.init) is not None else None,
        steps=done.get("steps"),
        global_batch=stage.data.get("global_batch"),
        samples=meta.get("samples"),
        data=public(stage.data.train.to_dict()),
        data_fingerprint=meta.get("data"),
        settings={key: stage.data[key] for key in _OF_DATA if key in stage.data},
        train=list(stage.train),
        optim=public(stage.optim.to_dict()),
        schedule=public(stage.schedule.to_dict()),
        seed=stage.runtime.get("seed"),
        targets=[_target(entry) for entry in stage.model.get("reconstruction") or []],
        transforms=[public(transform.to_dict()) for transform in stage.model_transforms],
        parallel=public(stage.parallel.to_dict()) if stage.parallel else None,
        frozen=frozen,
        machine=done.get("machine"),
        speed=_speed(stage.name, work_dir),
    )
    return {key: value for key, value in found.items() if value not in (None, {}, [])}


def _target(entry: dict) -> dict:
    kept = ("name", "type", "weight", "shift", "tap", "supervise")
    parts = {key: entry[key]["type"] for key in ("tokenizer", "teacher", "head", "loss") if _is_component(entry, key)}
    return {key: public(entry[key]) for key in kept if key in entry} | parts


def _is_component(entry: dict, key: str) -> bool:
    return isinstance(entry.get(key), dict) and "type" in entry[key]


def _parts(stage: Stage) -> list[dict]:
    """List every component that may be pretrained: its place in the config, its type, and its weights."""
    found = [*vision_parts("encoder", stage.model.encoder, ENCODERS), ("llm", stage.model.llm, LLMS)]
    for entry in stage.model.get("reconstruction") or []:
        for key, registry in (("tokenizer", VISUAL_TOKENIZERS), ("teacher", ENCODERS)):
            if _is_component(entry, key):
                found += vision_parts(f"{key} of target {entry['name']}", entry[key], registry)
    fitted = {f"tokenizer of target {e['name']}" for e in stage.model.get("reconstruction") or [] if "fit" in e}
    return [_part(key, config, fitted=key in fitted) for key, config, _ in found]


def _part(key: str, config: dict, *, fitted: bool) -> dict:
    weights = next((config[field] for field in WEIGHT_FIELDS if config.get(field)), None)
    found = dict(part=key, type=config["type"], model=config.get("model"), weights=weights, fitted=fitted or None)
    found["arch"] = (config.get("arch") or {}).get("model_type")
    found["on_hub"] = True if isinstance(weights, str) and may_be_on_hub(weights) else None
    return {name: public(value) for name, value in found.items() if value is not None}


def _on_hub_data(config: Any) -> Iterator[str]:
    """Yield the names of data sets of the Hub in a data set's config, also in the sources of a mixture."""
    if isinstance(config, dict):
        if config.get("type") == "HFDataset" and isinstance(config.get("path"), str) and may_be_on_hub(config["path"]):
            yield config["path"]
        config = list(config.values())
    if isinstance(config, list | tuple):
        for item in config:
            yield from _on_hub_data(item)


def _speed(name: str, work_dir: Path) -> dict:
    """The speed: medians over the log intervals, for all processes together, and the peak memory of one process."""
    file = work_dir / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows = [row for row in (json.loads(line) for line in lines if line.endswith("}")) if row.get("stage") == name]
    found = {key: [row[key] for row in rows if row.get(key)] for key in ("images_per_s", "tokens_per_s")}
    speed = {key: round(statistics.median(values), 1) for key, values in found.items() if values}
    peaks = [row["peak_memory_gib"] for row in rows if row.get("peak_memory_gib")]
    return speed | (dict(peak_memory_gib=round(max(peaks), 2)) if peaks else {})


def _results(name: str, work_dir: Path, averaged: bool) -> dict | None:
    """The results in ``results.json``, if they were made with these weights."""
    file = work_dir / "results.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    result = found.get(f"{name}_{EMA}" if averaged else name)
    if result is None:
        return None
    made_with = result.get("made_with", {})
    folder = work_dir / name / EMA if averaged else None
    own = checkpoint.weights_digest(folder) if averaged else weights_digest(work_dir, name)
    if made_with.get("weights") != own:
        return None
    kept = {key: value for key, value in result.items() if key not in _OF_RESULT}
    return kept | dict(
        dataset=public(made_with.get("settings", {}).get("dataset")), data_fingerprint=made_with.get("data")
    )


def _is_name(value: str) -> bool:
    """Whether a text is a name on the Hub, and not the path of a file that is not here."""
    return may_be_on_hub(value) and Path(value).suffix.lower() not in DATA_FILES


def public(value: Any) -> Any:
    """A value of a config without paths of this machine. A name on the Hub, which has one slash, is kept."""
    if isinstance(value, dict):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    if isinstance(value, str) and os.sep in value and not _is_name(value.removeprefix("package:")):
        return value if value.startswith("package:") else Path(value).name
    return value
