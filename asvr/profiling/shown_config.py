"""A config as text, with the defaults of all other fields. ``asvr show`` prints it."""

from typing import Any

from mmengine.registry import Registry

from asvr.recipe.catalog import ComponentInfo, component_kinds, describe
from asvr.recipe.components import CODES, NESTED, NESTED_LISTS, find
from asvr.recipe.recipe import Stage
from asvr.recipe.schema import SECTIONS
from asvr.registry import (
    HOOKS,
    METRICS,
    MODEL_TRANSFORMS,
    MODEL_WRAPPERS,
    MODELS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TARGETS,
    TEXT_TOKENIZERS,
    VISBACKENDS,
)

MARK = "  (default)"
STEP = "  "
# The registry that builds the component in a field (ONE), or in each entry of a list (MANY).
ONE = dict(NESTED, text_tokenizer=TEXT_TOKENIZERS, model=MODELS, parallel=MODEL_WRAPPERS, optim=OPTIMIZERS)
MANY = dict(
    NESTED_LISTS,
    reconstruction=TARGETS,
    metrics=METRICS,
    custom_hooks=HOOKS,
    model_transforms=MODEL_TRANSFORMS,
    vis_backends=VISBACKENDS,
    param_schedulers=PARAM_SCHEDULERS,
)
SHOWN = (
    *("text_tokenizer", "model", "model_transforms", "data", "optim", "schedule", "runtime"),
    *("evaluation", "validation", "parallel", "custom_hooks", "visualizer"),
)


def config_text(stage: Stage) -> str:
    """All settings of one stage, one per line. Settings that the config does not have are marked as defaults."""
    lines = []
    for name in SHOWN:
        value = getattr(stage, name)
        if value is None or value == ():
            lines.append(f"{name} = {None if value is None else []}{MARK}")
        else:
            lines += _lines(name, value, "")
    return "\n".join(lines)


def _lines(name: str, value: Any, indent: str) -> list[str]:
    """The lines of one field. A dict gets a line for each of its fields, and so does each dict in a list."""
    if isinstance(value, dict):
        return _dict(name, value, ONE.get(name), indent)
    if isinstance(value, list | tuple) and value and all(isinstance(item, dict) for item in value):
        return [line for i, item in enumerate(value) for line in _dict(f"{name}[{i}]", item, MANY.get(name), indent)]
    return [f"{indent}{name} = {value!r}"]


def _dict(name: str, value: dict, registry: Registry | None, indent: str) -> list[str]:
    kind = value.get("type", CODES if registry is TARGETS else None)
    info = None if registry is None or kind is None else _info(registry, kind)
    lines = [f"{indent}{name}: {kind if isinstance(kind, str) else getattr(kind, '__name__', '')}".rstrip(": ")]
    if kind is None and not value:
        return [f"{indent}{name} = {{}}"]
    for key, item in value.items():
        if key != "type":
            lines += _lines(key, item, indent + STEP)
    left_out = _defaults(name, info)
    return lines + [f"{indent}{STEP}{key} = {left_out[key]!r}{MARK}" for key in left_out if key not in value]


def _info(registry: Registry, kind: Any) -> ComponentInfo | None:
    component = find(registry, kind)
    (name,) = [name for name, own in component_kinds().items() if own is registry]
    return None if component is None else describe(name, str(kind), component)


def _defaults(section: str, info: ComponentInfo | None) -> dict[str, Any]:
    """The defaults of a component's constructor and of a section of the config."""
    found = {}
    if info is not None:
        found = {f.name: f.default for f in info.fields if not f.injected and not f.required}
    for name, field in SECTIONS.get(section, {}).items():
        if not field.required:
            found.setdefault(name, field.default)
    return found
