"""What each reconstruction method costs beside LLaVA, counted from its config: FLOPs, parameters, memory, cache.

LLaVA is the method's own config without its targets and with causal attention: where a method trains adapters, so does
what it is compared with. Stages are compared one by one, since a target may be there in one of them alone.
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
    """Name -> config, of all methods of a folder of recipes; files that begin with "_" are none."""
    return {path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}


def without_targets(path: Path) -> dict[str, object]:
    """Overrides that make LLaVA of a method's config."""
    found: dict[str, object] = {"model.reconstruction": [], "model.visual_attention": "causal"}
    for name, stage in load_config(path).stages.items():
        found[f"stages.{name}.model.reconstruction"] = []
        if "visual_attention" in stage.get("model", {}):
            found[f"stages.{name}.model.visual_attention"] = "causal"
    return found


def has_target(stage: Stage) -> bool:
    return any(has_weight(entry.get("weight", 1.0)) for entry in stage.model.get("reconstruction") or [])


def count_method(path: Path, sample: Sample, options: dict | None = None) -> dict:
    """What a method reconstructs, and by stage what it adds to LLaVA, see `_added`; None for a stage without a target.

    options: overrides of the config. cache_bytes: of the truth of one image; None where it cannot be cached.
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
    """FLOPs of a training step on one sample, parameters and buffers, and the plan's bytes on one card."""
    key = json.dumps([stage.to_dict(), asdict(sample)], sort_keys=True, default=str)
    if key not in _COUNTED:  # most methods have the same LLaVA beside them
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
    """flops_online, flops_cached: percent of LLaVA's training step, whose encoder runs in both. trained: parameters
    that get a gradient; held: all that must be there, frozen teachers and averages among them. states, activations:
    bytes on one card. base: LLaVA's own figures."""
    flops = {f"flops_{way}": 100 * (own[way] / base["online"] - 1) for way in ("online", "cached")}
    sizes = {key: own[key] - base[key] for key in ("trained", "held", "states", "activations")}
    return dict(flops, **sizes, checkpointing=own["mode"], base=base)


def cache_bytes(model: nn.Module) -> int | None:
    """Of one image, of what a run may keep of all targets' truth; None where one cannot be kept at all."""
    specs = [target.truth_spec() for target in model.targets]
    if any(spec is None for spec in specs):
        return None
    one = sum(prod(tensor.shape) * tensor.dtype.itemsize for spec in specs for tensor in spec.values())
    return one * model.layout.largest().num_crops


def reconstructed(stage: Stage, model: nn.Module) -> str:
    """In a few words: of each target what it says of itself, and the pretrained model that makes its truth."""
    words = []
    for entry, target in zip(stage.model.reconstruction, model.targets, strict=True):
        made_by = entry.get("tokenizer") or entry.get("teacher") or {}
        encoder = made_by.get("encoder") or {}
        names = [name for part in (made_by, encoder) if (name := part.get("name") or part.get("model"))]
        words.append(" ".join([target.describe(), *([f"({', '.join(names)})"] if names else [])]))
    return "; ".join(words)
