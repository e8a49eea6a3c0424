"""What the result of a stage depends on, and whether a checkpoint was made with the same."""

import json
from pathlib import Path

from mmengine.config import Config

from asvr.config import stage_config
from asvr.engine import checkpoint
from asvr.validate import SCRATCH

# Settings that may change between an interrupted run and its continuation: they do not touch the result.
_FREE = (
    "runtime.log_interval",
    "runtime.checkpoint_interval",
    "runtime.keep_checkpoints",
    "runtime.max_skipped",
    "runtime.async_checkpoint",
    "data.num_workers",
    "data.worker_timeout",
    "data.cache_dir",
    "data.cache_budget_gb",
    "data.on_error",  # what is refused is left out of its batch; no other sample moves
    "data.max_pixels",
    "evaluation",
    "validation",
)


def init_of(cfg: Config, name: str) -> str:
    """Where a stage starts: another stage, a model's folder, or from scratch."""
    names = list(cfg.stages)
    before = names[: names.index(name)]
    return cfg.stages[name].get("init", before[-1] if before else SCRATCH)


def identity(cfg: Config, name: str, text_tokenizer) -> dict:
    """Dotted key -> value of every setting that the result depends on, and what it was resolved to."""
    stage = stage_config(cfg, name)
    flat: dict = {"init": init_of(cfg, name), "text_tokenizer.fingerprint": text_tokenizer.fingerprint()}

    def visit(prefix: str, value) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                visit(f"{prefix}.{key}" if prefix else key, item)
        else:
            flat[prefix] = json.loads(json.dumps(value))

    for key in ("text_tokenizer", "model", "data", "optim", "schedule", "train", "runtime"):
        visit(key, stage.to_dict()[key])
    return {key: value for key, value in flat.items() if not key.startswith(_FREE)}


def check_same_config(folder: Path, own: dict) -> None:
    """Raise ``ValueError`` where a checkpoint's `identity` is another one, with what differs."""
    there = checkpoint.read_meta(folder)["config"]
    different = sorted(key for key in own.keys() | there.keys() if own.get(key) != there.get(key))
    if different:
        listing = "; ".join(_difference(key, there.get(key), own.get(key)) for key in different[:5])
        raise ValueError(
            f"{folder} belongs to another configuration ({listing}). "
            "Give the options it was trained with, take another --work-dir, or train anew with --resume never"
        )


def _difference(key: str, there, here) -> str:
    """What differs, as far down as both have it."""
    if isinstance(there, dict) and isinstance(here, dict) and there.keys() == here.keys():
        inner = next(k for k in there if there[k] != here[k])
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        inner = next(i for i in range(len(there)) if there[i] != here[i])
    else:
        return f"{key}: {there!r} there, {here!r} here"
    return _difference(f"{key}.{inner}", there[inner], here[inner])
