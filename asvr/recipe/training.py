"""Checks ``optim``, ``schedule`` and ``custom_hooks`` of a config.

Each function returns its problems, one line each.
"""

import inspect
from importlib.util import find_spec
from typing import Any

from mmengine.registry import Registry

from asvr.base.text import nearest
from asvr.recipe.components import check_choices, check_component, find
from asvr.recipe.entries import GROUP
from asvr.recipe.fields import check_fields
from asvr.recipe.schema import PRESETS, SECTIONS
from asvr.recipe.signatures import constructor_fields
from asvr.registry import HOOKS, OPTIMIZERS, PARAM_SCHEDULERS

PRESET = "cosine"  # the default
LENGTHS = ("begin", "end", "T_max", "total_steps", "step_size", "milestones", "periods")  # of a parameter scheduler
_OF_PRESETS = ("preset", "warmup_ratio", "min_lr_ratio", "decay_ratio")
_REFUSED = dict(
    LBFGS="it computes the loss several times in a step",
    SparseAdam="it takes only sparse gradients",
    ZeroRedundancyOptimizer="to shard the optimiser's state, use parallel=dict(type='FSDP2')",
)
_USABLE = ("EmptyCacheHook", "ProfilerHook")  # hooks of MMEngine that do not need its own training loop


def check_optim(value: dict) -> list[str]:
    fields = SECTIONS["optim"]
    cls = find(OPTIMIZERS, value.get("type"))
    own = constructor_fields(cls)[1] - {"params", "weight_decay"} if cls is not None else set()
    library = fields.keys() - {"betas"}  # `betas` is an argument of AdamW and of other optimisers
    arguments = {name: item for name, item in value.items() if name not in library}
    problems = check_fields("optim", {name: value[name] for name in value if name in fields}, fields)
    if "type" not in value or not isinstance(value["type"], str):
        return problems
    if cls is None:
        return [*problems, _unknown("optim.type", value["type"], OPTIMIZERS)]
    if value["type"] in _REFUSED:
        return [*problems, f"optim.type={value['type']!r}: {_REFUSED[value['type']]}; take another optimiser"]
    unknown = [name for name in arguments if name not in own]
    near = own | library
    problems += [f"optim.{name}: {value['type']} has no such field; {nearest(name, near)}" for name in unknown]
    known = {name: item for name, item in arguments.items() if name in own and name not in fields}
    problems += check_component("optim", dict(type=value["type"], lr=1.0, **known), OPTIMIZERS)
    problems += check_choices("optim", value, cls)
    if "weight_decay" not in constructor_fields(cls)[1] and value.get("weight_decay"):
        problems.append(
            f"optim.weight_decay={value['weight_decay']!r}: {value['type']} has no weight decay; leave it out, or set 0"
        )
    return problems + _groups(value, cls)


def _groups(value: dict, cls: type) -> list[str]:
    groups, problems = value.get("groups"), []
    for name, group in (groups or {}).items() if isinstance(groups, dict) else ():
        if isinstance(group, dict) and "freeze" in group:
            problems.append(
                f"optim.groups.{name}.freeze: no such field, since `train` of the stage says what is trained: leave "
                f"{name!r} out of it, or name the parts to train by patterns (train=['{name}.*norm*'])"
            )
            continue
        problems += check_fields(f"optim.groups.{name}", group, GROUP)
        if isinstance(group, dict) and "muon" in group and not getattr(cls, "split_blocks", False):
            problems.append(f"optim.groups.{name}.muon: only optim.type='Muon' has this field; leave it out")
        if isinstance(group, dict) and "lr_scale" in group and name in (value.get("lr_scale") or {}):
            problems.append(f"optim.groups.{name}.lr_scale: optim.lr_scale.{name} is given too; leave one of them out")
        if isinstance(group, dict) and "layer_decay" in group and name not in ("llm", "encoder"):
            problems.append(f"optim.groups.{name}.layer_decay: only llm and encoder can have it; leave it out")
    return problems


def check_schedule(value: dict) -> list[str]:
    problems = []
    if ("epochs" in value) == ("steps" in value):
        problems.append("schedule: expected either `epochs` or `steps`" + (", not both" if "steps" in value else ""))
    entries = value.get("param_schedulers")
    if entries is None:
        return problems + _preset(value)
    problems += [
        f"schedule.{name}: it belongs to a preset, but param_schedulers are given too; leave one of them out "
        "(schedule=dict(_delete_=True, ...) removes inherited fields)"
        for name in _OF_PRESETS
        if name in value
    ]
    for i, entry in enumerate(entries if isinstance(entries, list | tuple) else ()):
        problems += _scheduler(f"schedule.param_schedulers[{i}]", entry)
    return problems


def _preset(value: dict) -> list[str]:
    name, problems = value.get("preset", PRESET), []
    if "warmup_ratio" not in value:
        problems.append(f"schedule.warmup_ratio is missing: expected {SECTIONS['schedule']['warmup_ratio'].expected}")
    if name == "constant" and value.get("min_lr_ratio"):
        problems.append("schedule.min_lr_ratio: with preset='constant' the rate never falls; leave it out")
    if (name == "wsd") != ("decay_ratio" in value) and name in PRESETS:
        problems.append(
            "schedule.decay_ratio is missing: expected the part of the steps in which preset='wsd' falls, such as 0.2"
            if name == "wsd"
            else f"schedule.decay_ratio: preset={name!r} does not have it; leave it out, or use preset='wsd'"
        )
    ratios = [value.get(key, 0) for key in ("warmup_ratio", "decay_ratio")]
    if name == "wsd" and all(isinstance(ratio, int | float) for ratio in ratios) and sum(ratios) > 1:
        problems.append(f"schedule: warmup_ratio and decay_ratio add up to {sum(ratios)}; expected at most 1")
    return problems


def _scheduler(key: str, entry: Any) -> list[str]:
    problems = registered_component(key, _without_parts(entry), PARAM_SCHEDULERS)
    if problems:
        return problems
    if entry["type"].startswith("ReduceOnPlateau"):
        problems.append(f"{key}.type={entry['type']!r}: it needs MMEngine's own validation loop; use another schedule")
    if entry.get("by_epoch"):
        problems.append(f"{key}.by_epoch: schedules count optimisation steps in this library; leave it out")
    for name in LENGTHS:
        given = entry.get(name)
        for length in given if isinstance(given, list | tuple) else [given]:
            if isinstance(length, float) and not 0 <= length <= 1:
                problems.append(
                    f"{key}.{name}={length!r}: expected a fraction of all steps, 0.0 to 1.0, or a whole number of steps"
                )
    return problems


def _without_parts(entry: Any) -> Any:
    """The entry with whole numbers in place of fractions of all steps, which MMEngine does not know."""

    def steps(value):
        return [steps(item) for item in value] if isinstance(value, list | tuple) else 1

    if not isinstance(entry, dict):
        return entry
    return {k: steps(v) if k in LENGTHS and isinstance(v, float | list | tuple) else v for k, v in entry.items()}


def check_hooks(value: Any) -> list[str]:
    if not isinstance(value, list | tuple):
        return [f"custom_hooks={value!r}: expected a list of hooks, [dict(type=...), ...]"]
    problems = []
    for i, entry in enumerate(value):
        key = f"custom_hooks[{i}]"
        own = {name: item for name, item in entry.items() if name != "priority"} if isinstance(entry, dict) else entry
        found = registered_component(key, own, HOOKS)
        problems += found
        if not found and (why := _not_for_users(entry["type"])):
            problems.append(f"{key}.type={entry['type']!r}: {why}")
    return problems


def _not_for_users(name: str) -> str | None:
    module = HOOKS.get(name).__module__
    if module.startswith("asvr."):
        return "the library adds this hook itself; leave it out"
    if module.startswith("mmengine.") and name not in _USABLE:
        return (
            f"it needs MMEngine's own training loop; of MMEngine's hooks, you can use {', '.join(_USABLE)} (for "
            "averaged weights: runtime.ema; for logs: visualizer)"
        )
    return None


def registered_component(key: str, entry: Any, registry: Registry) -> list[str]:
    """The same as `check_component`, but for an unknown type it also suggests MMEngine's own components."""
    if isinstance(entry, dict) and isinstance(entry.get("type"), str) and not _is_known(entry["type"], registry):
        return [_unknown(f"{key}.type", entry["type"], registry)]
    return check_component(key, entry, registry)


def _is_known(name: str, registry: Registry) -> bool:
    try:
        return inspect.isclass(registry.get(name))
    except RuntimeError:
        return False


def _unknown(key: str, name: str, registry: Registry) -> str:
    package = name.partition(".")[0]
    if "." in name and find_spec(package) is None:
        return f"{key}={name!r} needs {package}: pip install {package}"
    known = {*registry.module_dict, *registry.parent.module_dict}
    return f"{key}={name!r}: no such {registry.name}; {nearest(name, known)}"
