"""Make a tokenizer from a config file, as ``asvr train-tokenizer`` does."""

import inspect
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

import asvr.data.image_folder  # noqa: F401  registers ImageFolder
from asvr.base.text import nearest
from asvr.base.weight_files import refuse_other_files
from asvr.models.component import fingerprint_of
from asvr.models.encoders import latents
from asvr.models.tokenizers import pixel, semantic
from asvr.models.tokenizers.vqgan import Adversary, PerceptualLoss
from asvr.recipe.components import check_component
from asvr.recipe.config import load_config
from asvr.registry import DATASETS, ENCODERS, VISUAL_TOKENIZERS
from asvr.tokenizer_training.latents import train_latent_encoder
from asvr.tokenizer_training.training import fit_semantic_tokenizer, train_pixel_tokenizer

logger = logging.getLogger("asvr")

# tokenizer type -> (section of the config, function whose keyword arguments are its fields)
KINDS = dict(
    SemanticTokenizer=("fit", fit_semantic_tokenizer),
    PixelTokenizer=("train", train_pixel_tokenizer),
    LatentEncoder=("train", train_latent_encoder),
)
FILES = dict(
    SemanticTokenizer=(semantic.WEIGHTS, semantic.DESCRIPTION),
    PixelTokenizer=(pixel.WEIGHTS, pixel.CONFIG),
    LatentEncoder=(latents.WEIGHTS, latents.CONFIG),
)
KNOWN = ("tokenizer", "data", "name", "default_scope", "custom_imports")


def run_config(
    path: str | Path, *, work_dir: str | Path | None = None, seed: int | None = None, cfg_options: dict | None = None
) -> dict:
    """Make the tokenizer of a config file and return its report.

    The tokenizer's folder is ``$ASVR_MODEL_ZOO/<name>`` if both are set, else ``work_dir/tokenizer``. ``report.json``,
    ``metrics.jsonl`` and ``summary.png`` are written to ``work_dir``.
    Raises ValueError with every problem of the config.
    """
    cfg = load_config(path, cfg_options)
    section, function = check(cfg)
    work_dir = Path(work_dir or Path("work_dirs") / Path(path).stem)
    options = dict(cfg.get(section, {}))
    if seed is not None:
        options["seed"] = seed
    folder = _folder(cfg, work_dir)
    refuse_other_files(folder, set(FILES[cfg.tokenizer.type]))  # before the work, not after it
    if folder.is_dir() and any(folder.iterdir()):
        logger.warning("%s holds a tokenizer; the new one will replace it", folder)
    torch.manual_seed(options.get("seed", 0))
    dataset = DATASETS.build(cfg.data)
    tokenizer = _registry(cfg.tokenizer.type).build(cfg.tokenizer)
    report = function(tokenizer, dataset, work_dir=work_dir, **options)
    tokenizer.save_pretrained(folder)
    report = dict(report, tokenizer=str(folder), fingerprint=fingerprint_of(tokenizer))
    (work_dir / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))
    return report


def check(cfg) -> tuple[str, Callable]:
    """The section and the function of the config's tokenizer. Raises ValueError with every wrong key."""
    if "stages" in cfg:
        raise ValueError(
            f"{cfg.filename} is the config of a training: give it to asvr train. A tokenizer's config has "
            "`tokenizer` and `data`, see configs/tokenizers"
        )
    problems = [f"{key} is missing" for key in ("tokenizer", "data") if key not in cfg]
    kind = cfg.get("tokenizer", {}).get("type")
    if problems or kind not in KINDS:
        problems += [] if problems else [f"tokenizer.type={kind!r}: {nearest(str(kind), KINDS)}"]
        raise ValueError(_listing(cfg, problems))
    section, function = KINDS[kind]
    known = (*KNOWN, section)
    problems += [f"{key}: unknown section; {nearest(key, known)}" for key in cfg if key not in known]
    problems += check_component("tokenizer", cfg.tokenizer, _registry(kind))
    problems += check_component("data", cfg.data, DATASETS)
    options = cfg.get(section, {})
    problems += _arguments(section, options, function, skip=("tokenizer", "dataset", "work_dir"))
    if options.get("adversarial"):
        problems += _arguments(f"{section}.adversarial", options["adversarial"], Adversary)
    if options.get("perceptual"):
        problems += _arguments(f"{section}.perceptual", options["perceptual"], PerceptualLoss, extra=("weight",))
    if kind == "SemanticTokenizer" and cfg.tokenizer.get("encoder") is None:
        problems.append("tokenizer.encoder is missing: expected the config of the encoder whose features are quantised")
    if problems:
        raise ValueError(_listing(cfg, problems))
    return section, function


def _registry(kind: str):
    """The registry of a kind. A VAE gives latents, not codes, so it is an encoder."""
    return ENCODERS if kind == "LatentEncoder" else VISUAL_TOKENIZERS


def _arguments(key: str, given: dict, function: Callable, *, skip=(), extra=()) -> list[str]:
    parameters = {name: p for name, p in inspect.signature(function).parameters.items() if name not in skip}
    known = (*parameters, *extra)
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in given]
    problems = [f"{key}.{name}: unknown field; {nearest(name, known)}" for name in given if name not in known]
    return problems + [f"{key}.{name} is missing" for name in missing]


def _listing(cfg, problems: list[str]) -> str:
    return f"{cfg.filename} has {len(problems)} problem(s):\n" + "\n".join(f"- {problem}" for problem in problems)


def _folder(cfg, work_dir: Path) -> Path:
    name, zoo = cfg.get("name"), os.environ.get("ASVR_MODEL_ZOO")
    if name is not None and zoo:
        return Path(zoo).expanduser() / name
    folder = work_dir / "tokenizer"
    if name is not None:
        logger.warning("ASVR_MODEL_ZOO is not set: %s is written to %s; give that path as its name", name, folder)
    return folder
