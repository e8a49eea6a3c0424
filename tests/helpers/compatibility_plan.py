"""Which cells the compatibility matrix has: every two values of two axes stand in one of them, and so does all that a
config names."""

import random
from collections.abc import Callable, Iterable
from itertools import combinations, product
from pathlib import Path

from compatibility_cells import AXES, DEFAULTS, Files, config_of, pairs
from compatibility_run import WORKS
from run_helpers import ROOT

from asvr.recipe.components import find
from asvr.recipe.config import load_config
from asvr.recipe.recipe import Recipe, Stage
from asvr.registry import ENCODERS, TARGETS

TRIES = 12  # cells of which the one with the most new pairs is run
FOLDERS = ("", "examples", "paper", "targets/scenes", "targets/vicuna7b")
CONFIGS = sorted(str(file.relative_to(ROOT)) for name in FOLDERS for file in (ROOT / "configs" / name).glob("[!_]*.py"))
ALL_PAIRS = {
    frozenset(pair)
    for (one, values), (other, others) in combinations(AXES.items(), 2)
    for pair in product([(one, value) for value in values], [(other, value) for value in others])
}
NOT_IN_A_CONFIG = "export"


def unusual(cell: dict[str, str]) -> frozenset:
    """The values of a cell that are no defaults, each as (axis, value)."""
    return frozenset(cell.items() - DEFAULTS.items())


def cover(required: list[dict], outcome: Callable[[dict], str]) -> list[tuple[dict, str]]:
    """Cells with their outcomes: the required ones, then as many as it takes for every pair to stand in one that works,
    or to be refused alone: with defaults on all other axes."""
    found: dict[frozenset, tuple[dict, str]] = {}
    refused: list[frozenset] = []
    todo, chance = set(ALL_PAIRS), random.Random(0)

    def run(cell: dict) -> str:
        key = frozenset(cell.items())
        if key not in found:
            ordered = {axis: cell[axis] for axis in AXES}
            found[key] = ordered, outcome(ordered)
        return found[key][1]

    kept: list[frozenset] = []
    for cell in required:
        assert run(cell) == WORKS, f"a config names this: {cell}: {run(cell)}"
        kept.append(frozenset(cell.items()))
        todo -= pairs(cell)
    while todo:
        cell = max((_grown(todo, refused, chance) for _ in range(TRIES)), key=lambda one: len(todo & pairs(one)))
        if run(cell) != WORKS:
            cell = _shrunk(cell, lambda one: run(one) != WORKS)
            refused.append(unusual(cell))
            todo = {pair for pair in todo if not refused[-1] <= pair}
        else:
            todo -= pairs(cell)
        kept.append(frozenset(cell.items()))
    return [found[key] for key in dict.fromkeys(kept)]


def _grown(todo: set, refused: list[frozenset], chance: random.Random) -> dict:
    """A cell with a pair that is to do and, axis by axis, the value that brings the most of others."""
    cell = dict(chance.choice(sorted(todo, key=sorted)))
    axes = [axis for axis in AXES if axis not in cell]
    for axis in chance.sample(axes, len(axes)):
        allowed = [
            value
            for value in AXES[axis]
            if value == DEFAULTS[axis] or not any(bad <= cell.items() | {(axis, value)} for bad in refused)
        ]
        gain = {value: sum(frozenset([(axis, value), item]) in todo for item in cell.items()) for value in allowed}
        cell[axis] = max(allowed, key=gain.get)
    return cell


def _shrunk(cell: dict, is_refused: Callable[[dict], bool]) -> dict:
    """With the default on every axis that has no part in the refusal."""
    for axis, default in DEFAULTS.items():
        if is_refused(changed := cell | {axis: default}):
            cell = changed
    assert unusual(cell), "the defaults are refused"
    return cell


class Reader:
    """Reads configs as cells: by the classes, model types and settings that they name."""

    def __init__(self, files: Files):
        self.known: dict[str, dict] = {axis: {} for axis in AXES if axis != NOT_IN_A_CONFIG}
        for axis, known in self.known.items():
            for value in AXES[axis]:
                stage = Recipe(config_of(DEFAULTS | {axis: value}, files)).last
                known[_facts(stage)[axis]] = value
            assert len(known) == len(AXES[axis]), f"two values of {axis} look alike"

    def cells(self, config: str) -> Iterable[tuple[str, dict]]:
        """By stage. Raises ``KeyError`` for something that no axis has."""
        for name, stage in Recipe(load_config(ROOT / config)).stages.items():
            facts = _facts(stage)
            yield name, DEFAULTS | {axis: known[facts[axis]] for axis, known in self.known.items()}


def _facts(stage: Stage) -> dict:
    """What tells one value of an axis from another."""
    model, data = stage.model, stage.data
    transforms = [transform.type for transform in stage.model_transforms]
    arch = model.llm.arch
    return dict(
        encoder=_encoder(model),
        llm=(arch.model_type, arch.model_type == "llama" and bool(arch.get("tie_word_embeddings"))),
        target=tuple(sorted(map(_target, model.get("reconstruction") or []))),
        attention=model.get("visual_attention", "causal"),
        trained=tuple(sorted({"encoder", "llm"} & stage.trained_components)),
        rows=bool(data.get("pack")),
        cache=data.get("cache", False),
        parallel=(stage.parallel or {}).get("type"),
        adapters=tuple(transforms),
        precision=stage.optim.precision,
    )


def _is_ours(registry, name: str) -> bool:
    return find(registry, name).__module__.startswith("asvr.")


def _encoder(model) -> tuple:
    kind = model.encoder.type
    if not _is_ours(ENCODERS, kind):
        return ("own",)
    if model.get("layout"):
        return (model.layout.type,)
    return (kind, model.encoder.arch.model_type) if kind == "HFVisionEncoder" else (kind,)


def _target(entry) -> tuple:
    kind = entry.get("type", "CodeTarget")
    if not _is_ours(TARGETS, kind):
        return ("own",)
    tokenizer = entry.get("tokenizer") or {}
    parts = dict(teacher="teacher" in entry, decay=kind == "EmbeddingTarget" and "decay" in entry)
    parts |= dict(encoder="encoder" in tokenizer, product=tokenizer.get("quantizer") == "product")
    return (kind, tokenizer.get("type", ""), *(name for name, there in parts.items() if there))


def configs_by_cell(reader: Reader, configs: list[str] = CONFIGS) -> dict[frozenset, list[str]]:
    """Which configs, and stages, are which cell."""
    found: dict[frozenset, list[str]] = {}
    for config in configs:
        by_stage: dict[frozenset, list[str]] = {}
        for stage, cell in reader.cells(config):
            by_stage.setdefault(frozenset(cell.items()), []).append(stage)
        for cell, stages in by_stage.items():
            found.setdefault(cell, []).append(f"{Path(config).relative_to('configs')} ({', '.join(stages)})")
    return found
