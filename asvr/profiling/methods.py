"""Count the cost that each reconstruction method adds to LLaVA: FLOPs, parameters, memory, cache.

LLaVA is here the method's own config without its targets and with causal attention. So if a method trains adapters, its
LLaVA does too. Stages are compared one by one, because a target may be in only one of them.
"""

import json
from dataclasses import asdict
from math import prod
from pathlib import Path

from torch import nn

from asvr.flops.count import Sample, forward_parts
from asvr.flops.memory import plan_memory
from asvr.models.targets.weights import has_weight
from asvr.profiling.report import training_flops
from asvr.recipe.config import load_config
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe, Stage

_COUNTED: dict[str, dict] = {}


def method_configs(folder: Path) -> dict[str, Path]:
    """The config of each method in a folder of recipes, by name. Files that begin with "_" are ignored."""
    return {path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}


def without_targets(path: Path) -> dict[str, object]:
    """The overrides that turn a method's config into LLaVA."""
    found: dict[str, object] = {"model.reconstruction": [], "model.visual_attention": "causal"}
    for name, stage in load_config(path).stages.items():
        found[f"stages.{name}.model.reconstruction"] = []
        if "visual_attention" in stage.get("model", {}):
            found[f"stages.{name}.model.visual_attention"] = "causal"
    return found


def has_target(stage: Stage) -> bool:
    return any(has_weight(entry.get("weight", 1.0)) for entry in stage.model.get("reconstruction") or [])


def count_method(path: Path, sample: Sample, options: dict | None = None) -> dict:
    """What a method reconstructs, and the cost that it adds to LLaVA in each stage, see `_added`.

    A stage without a target has None. options: overrides of the config. cache_bytes in the result: bytes of the truth
    of one image; None if it cannot be cached.
    """
    own = Recipe(load_config(path, options))
    base = Recipe(load_config(path, (options or {}) | without_targets(path)))
    stages = {
        name: _added(_counted(stage, sample), _counted(base.stages[name], sample)) if has_target(stage) else None
        for name, stage in own.stages.items()
    }
    stage = last_with_target(own)
    model = build_meta(stage)
    return dict(reconstructs=reconstructed(stage, model), cache_bytes=cache_bytes(model), stages=stages)


def last_with_target(recipe: Recipe) -> Stage:
    return next(stage for stage in reversed(list(recipe.stages.values())) if has_target(stage))


def _counted(stage: Stage, sample: Sample) -> dict:
    """FLOPs of a training step on one sample, parameters and buffers, and planned bytes on one card."""
    key = json.dumps([stage.to_dict(), asdict(sample)], sort_keys=True, default=str)
    if key not in _COUNTED:  # most methods are compared with the same LLaVA
        model = build_meta(stage)
        plan = plan_memory(stage, build_meta(stage))
        _COUNTED[key] = dict(
            training_flops(stage, model, forward_parts(model.eval(), sample)),
            trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
            held=sum(tensor.numel() for tensor in [*model.parameters(), *model.buffers()]),
            states=plan.states,
            activations=plan.activations[plan.mode],
            mode=plan.mode,
        )
    return _COUNTED[key]


def _added(own: dict, base: dict) -> dict:
    """The cost that a method adds in one stage.

    flops_online, flops_cached: in percent of LLaVA's training step; the encoder runs in both. trained: parameters that
    get a gradient. held: all parameters, with frozen teachers and averages. states, activations: bytes on one card.
    base: LLaVA's own numbers.
    """
    flops = {f"flops_{way}": 100 * (own[way] / base["online"] - 1) for way in ("online", "cached")}
    sizes = {key: own[key] - base[key] for key in ("trained", "held", "states", "activations")}
    return dict(flops, **sizes, checkpointing=own["mode"], base=base)


def cache_bytes(model: nn.Module) -> int | None:
    """Bytes of the cached truth of all targets for one image. None if the truth of a target cannot be cached."""
    specs = [target.truth_spec() for target in model.targets]
    if any(spec is None for spec in specs):
        return None
    one = sum(prod(tensor.shape) * tensor.dtype.itemsize for spec in specs for tensor in spec.values())
    return one * model.layout.largest().num_crops


def reconstructed(stage: Stage, model: nn.Module) -> str:
    """A short description of each target, with the pretrained model that makes its truth."""
    words = []
    for entry, target in zip(stage.model.reconstruction, model.targets, strict=True):
        made_by = entry.get("tokenizer") or entry.get("teacher") or {}
        encoder = made_by.get("encoder") or {}
        names = [name for part in (made_by, encoder) if (name := part.get("name") or part.get("model"))]
        words.append(" ".join([target.describe(), *([f"({', '.join(names)})"] if names else [])]))
    return "; ".join(words)
