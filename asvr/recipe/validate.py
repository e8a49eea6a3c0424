"""Checks a config before anything is built or any weight is read.

One ``ValueError`` reports all problems. Each has its key in the config, the given value, the expected value and the
nearest known names.
"""

import inspect
import itertools
from typing import Any

from mmengine.config import Config

from asvr.base.hub_model import may_be_on_hub
from asvr.base.text import nearest, short
from asvr.models.tree import TRAINABLE
from asvr.recipe.components import check_choices, check_component, find, nested_problems
from asvr.recipe.config import MODEL_FILE, SCRATCH, is_model_folder, stage_config
from asvr.recipe.entries import EMA, PROFILE
from asvr.recipe.fields import check_fields, count
from asvr.recipe.schema import SECTIONS
from asvr.recipe.signatures import constructor_fields
from asvr.recipe.trackers import check_visualizer
from asvr.recipe.training import check_hooks, check_optim, check_schedule
from asvr.registry import METRICS, MODEL_TRANSFORMS, MODEL_WRAPPERS, MODELS, TEXT_TOKENIZERS

ONCE = ("text_tokenizer", "runtime", "published")
BY_STAGE = (
    *("model", "data", "optim", "schedule", "evaluation", "validation", "parallel"),
    *("custom_hooks", "visualizer", "model_transforms"),
)
OPTIONAL = ("evaluation", "validation", "parallel", "custom_hooks", "visualizer")  # None: the stage has no such section
OF_STAGE = ("train", "init", *BY_STAGE)
OTHER = ("stages", "custom_imports", "default_scope")
REQUIRED = ("text_tokenizer", "model", "data", "optim", "schedule", "stages", "runtime")


def check_config(cfg: Config) -> None:
    """Raise ``ValueError`` with all problems of a config's keys, types, fields and plain values.

    Each stage is checked as it will run. Sizes that do not fit together are not found here, but by
    `asvr.recipe.preflight.check_sizes`, which builds the models without memory.
    """
    if (command := _other_command(cfg)) is not None:
        raise ValueError(f"{cfg.filename or 'the config'} is not a training config: give it to {command}")
    problems = [
        f"{key}: unknown section; {nearest(key, (*ONCE, *BY_STAGE, *OTHER))}"
        for key in cfg
        if key not in (*ONCE, *BY_STAGE, *OTHER)
    ]
    problems += [f"{key} is missing" for key in REQUIRED if key not in cfg]
    problems += [problem for key in ONCE if key in cfg for problem in check_section(key, cfg[key])]
    problems += _stages(cfg)
    if problems:
        listing = "\n".join(f"- {problem}" for problem in problems)
        raise ValueError(f"{cfg.filename or 'the config'} has {len(problems)} problem(s):\n{listing}")


def _other_command(cfg: Config) -> str | None:
    """The command for a config of another kind (a study, or a visual tokenizer), or None for a training config."""
    if "arms" in cfg:
        return "asvr study"
    return "asvr train-tokenizer" if "tokenizer" in cfg and "stages" not in cfg else None


def _stages(cfg: Config) -> list[str]:
    """The problems of the sections that a stage may override. A problem of all stages is reported once."""
    stages = cfg.get("stages")
    if not isinstance(stages, dict) or not stages:
        return (
            [] if stages is None else ["stages: expected dict(NAME=dict(train=[...], ...), ...), in the order they run"]
        )
    found: dict[str, list[str]] = {}
    for name, stage in stages.items():
        for problem in _stage(cfg, name, stage):
            found.setdefault(problem, []).append(name)
    return [
        problem if len(names) == len(stages) else f"stages.{', '.join(names)}: {problem}"
        for problem, names in found.items()
    ]


def _stage(cfg: Config, name: str, stage: Any) -> list[str]:
    if not isinstance(stage, dict):
        return [f"expected dict(train=[...], ...), not {short(stage)}"]
    problems = [f"{k}: unknown; {nearest(k, OF_STAGE)}" for k in stage if k not in OF_STAGE]
    train = stage.get("train")
    if not isinstance(train, list | tuple) or not train:
        problems.append(
            f"train={short(train)}: expected a list with any of {', '.join(TRAINABLE)}, or with patterns of weights "
            "such as 'llm.*.self_attn'"
        )
    else:
        names = [str(entry).partition(".")[0] for entry in train]
        problems += [
            f"train={list(train)}: no such component {n!r}; {nearest(n, TRAINABLE)}"
            for n in names
            if n not in TRAINABLE
        ]
    starts = (SCRATCH, *itertools.takewhile(lambda other: other != name, cfg.stages))
    init = str(stage.get("init", SCRATCH))
    if init not in starts and not is_model_folder(init) and not may_be_on_hub(init):  # `preflight` looks it up there
        problems.append(
            f"init={short(stage['init'])}: expected 'scratch', a stage before this one, a model's folder (with "
            f"{MODEL_FILE}), or a model's name on the Hub; {nearest(stage['init'], starts)}"
        )
    try:
        merged = stage_config(cfg, name)
    except ValueError as error:
        return [*problems, str(error).removeprefix(f"stages.{name}: ")]
    problems += [problem for key in BY_STAGE if key in merged for problem in check_section(key, merged[key])]
    return problems


def check_section(key: str, value: Any) -> list[str]:
    """Return the problems of one section, with the values that a stage runs with. key: the section's name."""
    if key == "text_tokenizer":
        return check_component(key, value, TEXT_TOKENIZERS)
    if key == "model":
        return check_component(key, value, MODELS)
    if key in OPTIONAL and value is None:
        return []
    if key == "custom_hooks":
        return check_hooks(value)
    if key == "visualizer":
        return check_visualizer(value)
    if key == "optim" and isinstance(value, dict):
        return check_optim(value)
    if key == "model_transforms":
        return _transforms(key, value)
    if key == "parallel":
        return check_component(key, value, MODEL_WRAPPERS) or _wrapper(value)
    problems = check_fields(key, value, SECTIONS[key])
    if not isinstance(value, dict):
        return problems
    problems += nested_problems(key, value)
    if key in ("evaluation", "validation") and isinstance(value.get("metrics"), list | tuple):
        problems += _metrics(f"{key}.metrics", value["metrics"])
    if key == "runtime" and isinstance(value.get("ema"), dict):
        problems += check_fields("runtime.ema", value["ema"], EMA)
    if key == "runtime" and isinstance(value.get("profile"), dict):
        problems += check_fields("runtime.profile", value["profile"], PROFILE)
    if key == "schedule":
        problems += check_schedule(value)
    if key == "data":
        batch, part = value.get("global_batch"), value.get("micro_batch")
        if count().test(batch) and count().test(part) and batch % part:
            problems.append(f"data.global_batch={batch}: expected a multiple of data.micro_batch={part}")
        problems += _packing(value)
    return problems


def _transforms(key: str, value: Any) -> list[str]:
    if value is not None and not isinstance(value, list | tuple):
        return [f"{key}={value!r}: expected a list of model transforms, [dict(type=...), ...]"]
    problems = []
    for i, entry in enumerate(value or []):
        found = check_component(f"{key}[{i}]", entry, MODEL_TRANSFORMS)
        problems += found or _transform(f"{key}[{i}].type={entry['type']!r}", find(MODEL_TRANSFORMS, entry["type"]))
    return problems


def _transform(what: str, kind: Any) -> list[str]:
    if inspect.isclass(kind):
        called = "__call__" in dir(kind)
    else:
        called = "model" in constructor_fields(kind)[1]
    return [] if called else [f"{what}: expected a class with __call__(model), or a function with an argument `model`"]


def _wrapper(value: dict) -> list[str]:
    """The problems of a wrapper. MMEngine's own wrappers are refused: they do not know our optimisation steps."""
    name = value["type"]
    wrapper = find(MODEL_WRAPPERS, name)
    if not {"module", "device"} <= constructor_fields(wrapper)[1]:
        return [
            f"parallel.type={name!r}: it cannot share an optimisation step of this library; "
            f"{nearest(name, MODEL_WRAPPERS.module_dict)}"
        ]
    return check_choices("parallel", value, wrapper)


def _metrics(key: str, metrics: list) -> list[str]:
    """The problems of metrics. MMEngine's own metrics are refused: they do not take answers."""
    problems = []
    for i, metric in enumerate(metrics):
        wrong = check_component(f"{key}[{i}]", metric, METRICS)
        if not wrong and not all(hasattr(find(METRICS, metric["type"]), name) for name in ("update", "compute")):
            kind = metric["type"]
            wrong = [
                f"{key}[{i}].type={kind!r} must have update() and compute(), see asvr.evaluation.metrics.Metric; "
                f"{nearest(kind, METRICS.module_dict)}"
            ]
        problems += wrong
    return problems


def _packing(data: dict) -> list[str]:
    pack, limit, problems = data.get("pack"), data.get("max_length"), []
    if pack and data.get("group"):
        problems.append("data.group: packed samples need no grouping; leave out data.group or data.pack")
    tokens = pack.get("max_tokens") if isinstance(pack, dict) else None
    if count().test(tokens) and count().test(limit) and tokens < limit:
        problems.append(f"data.pack.max_tokens={tokens}: expected at least data.max_length={limit}")
    return problems
