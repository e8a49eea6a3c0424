"""Checks the components of a config: their types, the fields of their constructors, and nested components."""

import inspect
from collections.abc import Iterator
from typing import Any

from mmengine.registry import Registry

from asvr.base.arch import causal_problem, check_arch, tower_problem
from asvr.base.text import nearest, short
from asvr.models.losses import FeatureLoss
from asvr.models.targets import CodeTarget
from asvr.recipe.entries import NAME, SOURCE, TARGET
from asvr.recipe.fields import check_fields
from asvr.recipe.signatures import annotations, constructor_fields, fits, in_words, method_fields
from asvr.registry import (
    DATASETS,
    ENCODERS,
    HEADS,
    HOOKS,
    LAYOUTS,
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

# Constructor arguments that the library gives. A config leaves them out.
INJECTED = {
    MODELS: {"vocab_size", "load_weights", "defer_llm"},
    ENCODERS: {"load_weights"},
    PROJECTORS: {"in_width", "out_width"},
    LAYOUTS: {"encoder"},
    LLMS: {"vocab_size", "load_weights", "defer"},
    VISUAL_TOKENIZERS: {"encoder", "load_weights"},
    HEADS: {"hidden_size", "codebook_sizes", "code_width"},
    TARGETS: {"encoder", "llm", "model_projector", "load_weights", "key"},
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
# The kinds whose constructors must take all of these arguments. Those of ASKED_FOR are optional: the library gives them
# only to a constructor that takes them.
GIVEN = (MODELS, ENCODERS, PROJECTORS, LLMS, VISUAL_TOKENIZERS, HEADS, DATASETS)
ASKED_FOR = {"encoder", "defer", "defer_llm"}
# Field name -> the registry that builds the component in it, at any place in a config.
NESTED = dict(
    encoder=ENCODERS,
    projector=PROJECTORS,
    layout=LAYOUTS,
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
NESTED_LISTS = dict(encoders=ENCODERS)  # the same for fields that hold a list of components
PARTS = ("encoder", "projector", "llm")  # fields of a model that are always a component
CODES = "CodeTarget"  # the type of a target whose config has no type
OWN = "asvr."  # how this library's modules begin. In most of its components, `arch` is a transformers configuration.


def check_component(key: str, value: Any, registry: Registry) -> list[str]:
    """Return the problems of one component: its type, its constructor's fields, and the components in it."""
    if not isinstance(value, dict):
        return [f"{key}={short(value)}: expected {_one(registry)}, dict(type=...)"]
    if "type" not in value:
        return [f"{key}.type is missing: expected {_one(registry)}; {nearest('', registry.module_dict)}"]
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
    own = cls.__module__.startswith(OWN) and getattr(cls, "transformers_arch", True)
    if registry in (ENCODERS, LLMS) and isinstance(value.get("arch"), dict) and own:
        wrong = causal_problem if registry is LLMS else tower_problem
        problems += check_arch(f"{key}.arch", value["arch"], wrong)
    return problems + nested_problems(key, value)


def check_choices(key: str, value: dict, cls: type) -> list[str]:
    """The problems of fields whose allowed values the class lists in ``choices``: field -> values."""
    return [
        f"{key}.{field}={value[field]!r}: expected one of {', '.join(map(repr, allowed))}"
        for field, allowed in getattr(cls, "choices", {}).items()
        if field in value and value[field] not in allowed
    ]


def _one(registry: Registry) -> str:
    """The name of one component with its article, such as "an encoder"."""
    return f"{'an' if registry.name.startswith(('a', 'e', 'i', 'o', 'llm')) else 'a'} {registry.name}"


def _given(key: str, registry: Registry) -> set[str]:
    """The arguments that the library always gives a part of the model or a data set.

    A data set that is only read for its texts or images gets none."""
    if registry not in GIVEN or registry is DATASETS and not key.endswith((".train", ".dataset")):
        return set()
    return INJECTED[registry] - ASKED_FOR


def nested_problems(key: str, value: dict) -> list[str]:
    problems = []
    for name, item in value.items():
        if name == "reconstruction" and isinstance(item, list | tuple):
            problems += _targets(f"{key}.{name}", item)
        elif name == "reconstruction":
            continue  # `check_component` finds it: VLM's annotation says that it must be a list
        elif name == "sources" and isinstance(item, list | tuple):
            for i, source in enumerate(item):
                problems += check_fields(f"{key}.sources[{i}]", source, SOURCE)
                problems += nested_problems(f"{key}.sources[{i}]", source) if isinstance(source, dict) else []
        elif name == "template" and isinstance(item, str):
            if find(TEMPLATES, item) is None:
                problems.append(f"{key}.template={item!r}: no such template; {nearest(item, TEMPLATES.module_dict)}")
        elif name in NESTED and (isinstance(item, dict) or (key == "model" and name in PARTS)):
            problems += check_component(f"{key}.{name}", item, NESTED[name])
        elif name in NESTED_LISTS and isinstance(item, list | tuple):
            for i, one in enumerate(item):
                problems += check_component(f"{key}.{name}[{i}]", one, NESTED_LISTS[name])
    return problems


def vision_parts(key: str, config: dict, registry: Registry) -> Iterator[tuple[str, dict, Registry]]:
    """Yield the key, config and registry of a component that sees images, and of all such components in it."""
    yield key, config, registry
    for name in ("encoder", "tokenizer"):
        if isinstance(config.get(name), dict):
            yield from vision_parts(f"{key}.{name}", config[name], NESTED[name])
    for name, of in NESTED_LISTS.items():
        for i, one in enumerate(config.get(name) or ()):
            yield from vision_parts(f"{key}.{name}[{i}]", one, of)


def _targets(key: str, targets: list) -> list[str]:
    problems = []
    for i, target in enumerate(targets):
        problems += _target(f"{key}[{i}]", target)
    names = [target.get("name") for target in targets if isinstance(target, dict)]
    if len(set(names)) < len(names):
        problems.append(f"{key}: each target must have a name of its own; the names are {names}")
    return problems


def _target(key: str, target: Any) -> list[str]:
    """A `CodeTarget` is checked by its own table of fields, another class by its constructor."""
    if not isinstance(target, dict) or target.get("type", CODES) == CODES:
        problems = check_fields(key, target, TARGET)
        if not isinstance(target, dict):
            return problems
        return problems + nested_problems(key, target) + _fit(key, target) + _loss_of_codes(key, target)
    problems = [
        f"{key}.{name}: the library gives this argument; leave it out. A target's own encoder goes into `teacher`"
        for name in sorted(INJECTED[TARGETS] & target.keys())
    ]
    if "name" in target and not NAME.test(target["name"]):
        problems.append(f"{key}.name={target['name']!r}: expected {NAME.expected}")
    of_codes = _is_a(find(TARGETS, target["type"]), CodeTarget)
    problems += check_component(key, target, TARGETS) + _fit(key, target)
    return problems + (_loss_of_codes(key, target) if of_codes else [])


def _is_a(kind: Any, base: type) -> bool:
    return inspect.isclass(kind) and issubclass(kind, base)


def _loss_of_codes(key: str, target: dict) -> list[str]:
    """A `FeatureLoss` cannot be the loss of codes: it needs other tensors than a head of codes gives."""
    name = target["loss"].get("type") if isinstance(target.get("loss"), dict) else None
    if not _is_a(find(LOSSES, name), FeatureLoss):
        return []
    return [
        f"{key}.loss.type={name!r} compares features, and this target has codes: use CodeCrossEntropy here, or "
        f"{name} in a FeatureTarget"
    ]


def _fit(key: str, target: dict) -> list[str]:
    """Check ``fit`` of a target: its fields are arguments of the tokenizer's ``fit(batches, *, seed, ...)``."""
    tokenizer = target.get("tokenizer")
    cls = find(VISUAL_TOKENIZERS, tokenizer.get("type")) if isinstance(tokenizer, dict) else None
    if cls is None or not isinstance(target.get("fit"), dict):
        return []
    if not hasattr(cls, "fit"):
        return [f"{key}.fit: {tokenizer['type']} has no method fit(); leave `fit` out"]
    given, injected = target["fit"].keys(), {"batches", "seed"}
    required, known, takes_any = method_fields(cls, "fit")
    unknown = [] if takes_any else [name for name in given if name not in known - injected]
    problems = [f"{key}.fit.{name}: unknown; {nearest(name, known - injected)}" for name in unknown]
    missing = sorted(required - given - injected)
    return problems + [f"{key}.fit.{name} is missing: {tokenizer['type']}.fit() needs it" for name in missing]


def find(registry: Registry, name: Any):
    """The class that a ``type`` names, or None.

    It is looked up in a registry, in its parents, or by an import (``package.module.Class``)."""
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
