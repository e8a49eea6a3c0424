"""Checking a config before anything is built and any weight is read.

Every problem is collected and reported in one ``ValueError``, each with its key in the config, what was
given, what was expected and the nearest known names.
"""

import inspect
import itertools
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry

from asvr.base.arch import causal_problem, check_arch, tower_problem
from asvr.base.text import nearest, short
from asvr.models.tree import TRAINABLE
from asvr.recipe.config import MODEL_FILE, SCRATCH, is_model_folder, stage_config
from asvr.recipe.schema import EMA, NAME, SECTIONS, SOURCE, TARGET, check_fields, count
from asvr.recipe.signatures import annotations, constructor_fields, fits, in_words, method_fields
from asvr.recipe.training import check_hooks, check_optim, check_schedule, check_visualizer
from asvr.registry import (
    DATASETS,
    ENCODERS,
    HEADS,
    HOOKS,
    LLMS,
    LOSSES,
    METRICS,
    MODEL_TRANSFORMS,
    MODEL_WRAPPERS,
    MODELS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    PROJECTORS,
    TARGETS,
    TEMPLATES,
    TEXT_TOKENIZERS,
    VISBACKENDS,
    VISUAL_TOKENIZERS,
)

# Constructor arguments that the library fills in, so that a config need not.
INJECTED = {
    MODELS: {"vocab_size", "load_weights", "defer_llm"},
    ENCODERS: {"load_weights"},
    PROJECTORS: {"in_width", "out_width"},
    LLMS: {"vocab_size", "load_weights", "defer"},
    VISUAL_TOKENIZERS: {"encoder", "load_weights"},
    HEADS: {"hidden_size", "codebook_sizes", "code_width"},
    TARGETS: {"encoder", "llm", "load_weights", "key"},
    LOSSES: set(),
    DATASETS: {"tokenizer", "template", "max_length", "num_image_tokens", "on_error"},
    TEXT_TOKENIZERS: set(),
    TEMPLATES: set(),
    MODEL_WRAPPERS: {"module", "device"},
    OPTIMIZERS: {"params"},
    PARAM_SCHEDULERS: {"optimizer", "param_name"},
    HOOKS: set(),
    VISBACKENDS: {"save_dir"},
    MODEL_TRANSFORMS: {"model"},
    METRICS: set(),
}
# Where a constructor must take all of them, but for those that are given only to one that does.
GIVEN = (MODELS, ENCODERS, PROJECTORS, LLMS, VISUAL_TOKENIZERS, HEADS, DATASETS)
ASKED_FOR = {"encoder", "defer", "defer_llm"}
# Which registry builds the component in a field of this name, wherever the field stands.
NESTED = dict(
    encoder=ENCODERS,
    projector=PROJECTORS,
    llm=LLMS,
    tokenizer=VISUAL_TOKENIZERS,
    head=HEADS,
    loss=LOSSES,
    teacher=ENCODERS,
    corpus=DATASETS,
    dataset=DATASETS,
    train=DATASETS,
    template=TEMPLATES,
)
PARTS = ("encoder", "projector", "llm")  # of a model: always a component
ONCE = ("text_tokenizer", "runtime")
BY_STAGE = (
    *("model", "data", "optim", "schedule", "evaluation", "validation", "parallel"),
    *("custom_hooks", "visualizer", "model_transforms"),
)
OPTIONAL = ("evaluation", "validation", "parallel", "custom_hooks", "visualizer")  # None: the stage does without
OF_STAGE = ("train", "init", *BY_STAGE)
CODES = "CodeTarget"  # the type of a target that names none
OWN = "asvr."  # modules of this library: in its components, `arch` is a transformers configuration
OTHER = ("stages", "custom_imports", "default_scope")
REQUIRED = ("text_tokenizer", "model", "data", "optim", "schedule", "stages", "runtime")


def check_config(cfg: Config) -> None:
    """Raise ``ValueError`` with everything that is wrong in a config's keys, types, fields and plain values.

    Each stage is checked as it will run. Sizes that do not fit together are found by building, which
    `asvr.recipe.preflight.check_sizes` does without memory.
    """
    problems = [
        f"{key}: unknown section; {nearest(key, (*ONCE, *BY_STAGE, *OTHER))}"
        for key in cfg
        if key not in (*ONCE, *BY_STAGE, *OTHER)
    ]
    problems += [f"{key} is missing" for key in REQUIRED if key not in cfg]
    problems += [problem for key in ONCE if key in cfg for problem in _section(key, cfg[key])]
    problems += _stages(cfg)
    if problems:
        listing = "\n".join(f"- {problem}" for problem in problems)
        raise ValueError(f"{cfg.filename or 'the config'} has {len(problems)} problem(s):\n{listing}")


def _stages(cfg: Config) -> list[str]:
    """Problems of the sections that a stage may override; one that all stages share is told once."""
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
            f"train={short(train)}: expected a list of some of {', '.join(TRAINABLE)}, or of patterns of weights "
            "('llm.*.self_attn')"
        )
    else:
        names = [str(entry).partition(".")[0] for entry in train]
        problems += [
            f"train={list(train)}: no component {n!r}; {nearest(n, TRAINABLE)}" for n in names if n not in TRAINABLE
        ]
    starts = (SCRATCH, *itertools.takewhile(lambda other: other != name, cfg.stages))
    if "init" in stage and stage["init"] not in starts and not is_model_folder(str(stage["init"])):
        problems.append(
            f"init={short(stage['init'])}: expected 'scratch' or a stage before this one, or a model's folder (with "
            f"{MODEL_FILE}); {nearest(stage['init'], starts)}"
        )
    try:
        merged = stage_config(cfg, name)
    except ValueError as error:
        return [*problems, str(error).removeprefix(f"stages.{name}: ")]
    problems += [problem for key in BY_STAGE if key in merged for problem in _section(key, merged[key])]
    return problems


def _section(key: str, value: Any) -> list[str]:
    if key == "text_tokenizer":
        return check_component(key, value, TEXT_TOKENIZERS)
    if key == "model":
        return check_component(key, value, MODELS)
    if key in OPTIONAL and value is None:
        return []
    if key == "custom_hooks":
        return check_hooks(value, check_component)
    if key == "visualizer":
        return check_visualizer(value, check_component)
    if key == "optim" and isinstance(value, dict):
        return check_optim(value, check_component, find)
    if key == "model_transforms":
        return _transforms(key, value)
    if key == "parallel":
        return check_component(key, value, MODEL_WRAPPERS) or _wrapper(value)
    problems = check_fields(key, value, SECTIONS[key])
    if not isinstance(value, dict):
        return problems
    problems += _nested(key, value)
    if key in ("evaluation", "validation") and isinstance(value.get("metrics"), list | tuple):
        problems += _metrics(f"{key}.metrics", value["metrics"])
    if key == "runtime" and isinstance(value.get("ema"), dict):
        problems += check_fields("runtime.ema", value["ema"], EMA)
    if key == "schedule":
        problems += check_schedule(value, check_component)
    if key == "data":
        whole, part = value.get("global_batch"), value.get("micro_batch")
        if count().test(whole) and count().test(part) and whole % part:
            problems.append(f"data.global_batch={whole}: expected a multiple of data.micro_batch={part}")
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
    """MMEngine's own, which would be found too, know nothing of optimisation steps."""
    name = value["type"]
    wrapper = find(MODEL_WRAPPERS, name)
    if not {"module", "device"} <= constructor_fields(wrapper)[1]:
        return [f"parallel.type={name!r} shares no steps; {nearest(name, MODEL_WRAPPERS.module_dict)}"]
    return [
        f"parallel.{field}={value[field]!r}: expected one of {', '.join(map(repr, allowed))}"
        for field, allowed in getattr(wrapper, "choices", {}).items()
        if field in value and value[field] not in allowed
    ]


def _metrics(key: str, metrics: list) -> list[str]:
    """MMEngine's own, which would be found too, take other things than answers."""
    problems = []
    for i, metric in enumerate(metrics):
        wrong = check_component(f"{key}[{i}]", metric, METRICS)
        if not wrong and not all(hasattr(find(METRICS, metric["type"]), name) for name in ("update", "compute")):
            kind = metric["type"]
            wrong = [
                f"{key}[{i}].type={kind!r} has no update() and compute(), see asvr.evaluation.metrics.Metric; "
                f"{nearest(kind, METRICS.module_dict)}"
            ]
        problems += wrong
    return problems


def _packing(data: dict) -> list[str]:
    pack, limit, problems = data.get("pack"), data.get("max_length"), []
    if pack and data.get("group"):
        problems.append("data.group: packed samples need no grouping; leave it out, or data.pack")
    tokens = pack.get("max_tokens") if isinstance(pack, dict) else None
    if count().test(tokens) and count().test(limit) and tokens < limit:
        problems.append(f"data.pack.max_tokens={tokens}: expected at least data.max_length={limit}")
    return problems


def check_component(key: str, value: Any, registry: Registry) -> list[str]:
    """The problems of one component: its type, its constructor's fields, and the components in it."""
    if not isinstance(value, dict):
        return [f"{key}={short(value)}: expected a {registry.name}, dict(type=...)"]
    if "type" not in value:
        return [f"{key}.type is missing: expected a {registry.name}; {nearest('', registry.module_dict)}"]
    cls = find(registry, value["type"])
    if cls is None:
        return [
            f"{key}.type={value['type']!r}: no such {registry.name}; {nearest(value['type'], registry.module_dict)}"
        ]
    required, known, takes_any = constructor_fields(cls)
    given = value.keys() - {"type"}
    problems = []
    if not takes_any:
        own = known - INJECTED[registry]
        problems += [
            f"{key}.{name}: {value['type']} has no such field; {nearest(name, own)}"
            for name in value
            if name in given - known
        ]
    hints = annotations(cls)
    problems += [
        f"{key}.{name}={short(value[name])}: expected {in_words(hints[name])}"
        for name in value
        if name in hints and not fits(value[name], hints[name]) and not (registry is MODELS and name in PARTS)
    ]
    problems += [
        f"{key}.{name} is missing: {value['type']} needs it" for name in sorted(required - given - INJECTED[registry])
    ]
    if not takes_any and (lacking := sorted(_given(key, registry) - known)):
        problems.append(
            f"{key}.type={value['type']!r}: its constructor does not take {', '.join(lacking)}, which the library "
            f"gives every {registry.name} (docs/components.md)"
        )
    if registry in (ENCODERS, LLMS) and isinstance(value.get("arch"), dict) and cls.__module__.startswith(OWN):
        wrong = causal_problem if registry is LLMS else tower_problem
        problems += check_arch(f"{key}.arch", value["arch"], wrong)
    return problems + _nested(key, value)


def _given(key: str, registry: Registry) -> set[str]:
    """What the library gives a part of the model, or a data set, in any case. A data set that is read for its texts or
    images alone gets nothing."""
    if registry not in GIVEN or registry is DATASETS and not key.endswith((".train", ".dataset")):
        return set()
    return INJECTED[registry] - ASKED_FOR


def _nested(key: str, value: dict) -> list[str]:
    problems = []
    for name, item in value.items():
        if name == "reconstruction" and isinstance(item, list | tuple):
            problems += _targets(f"{key}.{name}", item)
        elif name == "reconstruction":
            continue  # VLM's own annotation tells that it must be a list
        elif name == "sources" and isinstance(item, list | tuple):
            for i, source in enumerate(item):
                problems += check_fields(f"{key}.sources[{i}]", source, SOURCE)
                problems += _nested(f"{key}.sources[{i}]", source) if isinstance(source, dict) else []
        elif name == "template" and isinstance(item, str):
            if find(TEMPLATES, item) is None:
                problems.append(f"{key}.template={item!r}: no such template; {nearest(item, TEMPLATES.module_dict)}")
        elif name in NESTED and (isinstance(item, dict) or (key == "model" and name in PARTS)):
            problems += check_component(f"{key}.{name}", item, NESTED[name])
    return problems


def _targets(key: str, targets: list) -> list[str]:
    problems = []
    for i, target in enumerate(targets):
        problems += _target(f"{key}[{i}]", target)
    names = [target.get("name") for target in targets if isinstance(target, dict)]
    if len(set(names)) < len(names):
        problems.append(f"{key}: the names of the targets must differ, given {names}")
    return problems


def _target(key: str, target: Any) -> list[str]:
    """A `CodeTarget`'s fields have rules of their own; of another class its constructor tells."""
    if not isinstance(target, dict) or target.get("type", CODES) == CODES:
        problems = check_fields(key, target, TARGET)
        return problems + (_nested(key, target) + _fit(key, target) if isinstance(target, dict) else [])
    problems = [
        f"{key}.{name}: the library gives it; a target's own encoder is its `teacher`"
        for name in sorted(INJECTED[TARGETS] & target.keys())
    ]
    if "name" in target and not NAME.test(target["name"]):
        problems.append(f"{key}.name={target['name']!r}: expected {NAME.expected}")
    return problems + check_component(key, target, TARGETS) + _fit(key, target)


def _fit(key: str, target: dict) -> list[str]:
    """``fit`` of a target becomes arguments of its tokenizer's ``fit(batches, *, seed, ...)``."""
    tokenizer = target.get("tokenizer")
    cls = find(VISUAL_TOKENIZERS, tokenizer.get("type")) if isinstance(tokenizer, dict) else None
    if cls is None or not isinstance(target.get("fit"), dict):
        return []
    if not hasattr(cls, "fit"):
        return [f"{key}.fit: {tokenizer['type']} has no fit(); leave it out"]
    given, injected = target["fit"].keys(), {"batches", "seed"}
    required, known, takes_any = method_fields(cls, "fit")
    unknown = [] if takes_any else [name for name in given if name not in known - injected]
    problems = [f"{key}.fit.{name}: unknown; {nearest(name, known - injected)}" for name in unknown]
    missing = sorted(required - given - injected)
    return problems + [f"{key}.fit.{name} is missing: {tokenizer['type']}.fit() needs it" for name in missing]


def find(registry: Registry, name: Any):
    """The class of a ``type``, from a registry, its parents or (``package.module.Class``) an import; or None."""
    if not isinstance(name, str):
        return name if inspect.isclass(name) else None
    if "." in name:
        try:
            return registry.get(name)
        except RuntimeError:
            return None
    while registry is not None:
        if name in registry.module_dict:
            return registry.module_dict[name]
        registry = registry.parent
    return None
