"""What is computed once before training: features and codes of frozen parts, and codebooks fitted on the
training pictures."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config

from asvr.config import stage_config
from asvr.data.feature_cache import FeatureCache, build_feature_cache
from asvr.engine.build import build_device, build_text_tokenizer
from asvr.engine.log import logger
from asvr.models.targets import build_tokenizer, shares_encoder
from asvr.registry import DATASETS, ENCODERS


@dataclass
class Prepared:
    """What the stages start from.

    cfg: the config, with the folder of a fitted tokenizer as its ``name`` in place of ``fit``.
    cache: features and codes of all pictures, None where ``data.cache`` is off.
    """

    cfg: Config
    text_tokenizer: object
    cache: FeatureCache | None


def prepare(cfg: Config, work_dir: Path) -> Prepared:
    """Everything that stands before the first stage; what is there already is reused.

    A target with ``fit`` gets its tokenizer fitted on the training pictures and saved under
    ``work_dir/tokenizers/<target>``. ``cfg`` itself is left as it is: it says what a run is, wherever it lies.
    """
    cfg = copy.deepcopy(cfg)
    tokenizer = build_text_tokenizer(cfg, work_dir)
    targets = [target for target in cfg.model.reconstruction if "fit" in target]
    if not cfg.data.get("cache", False):
        if targets:
            raise ValueError(f"reconstruction target {targets[0]['name']!r} has `fit`, which needs data.cache=True")
        return Prepared(cfg, tokenizer, None)

    device = build_device(cfg.runtime.device)
    encoder = ENCODERS.build(cfg.model.encoder).requires_grad_(False).eval().to(device)
    training, all_pictures = pictures_of(cfg)
    cache = build_feature_cache(work_dir / "cache", encoder, all_pictures, cfg.data.image_aspect, device)
    for target in targets:
        folder = work_dir / "tokenizers" / target["name"]
        _fit(target, folder, encoder, cache, training, cfg.runtime.seed)
        target["tokenizer"]["name"] = str(folder)
        del target["fit"]
    for target in cfg.model.reconstruction:
        visual = build_tokenizer(target["tokenizer"], encoder).to(device)
        shared = shares_encoder(visual, encoder)
        cache.add_codes(
            target["name"], visual, shared=shared, pictures=all_pictures, aspect=cfg.data.image_aspect, device=device
        )
    return Prepared(cfg, tokenizer, cache)


def pictures_of(cfg: Config) -> tuple[list[str], dict]:
    """Keys of the training pictures of all stages, and every picture (key -> file), the evaluation's among them."""
    datasets, evaluations = [], []
    for name in cfg.stages:
        stage = stage_config(cfg, name)
        if "encoder" in stage.train:
            raise ValueError(
                f"data.cache holds features of a frozen encoder, and stage {name} trains it: set data.cache=False"
            )
        for key in ("encoder", "reconstruction"):
            if stage.model[key] != cfg.model[key]:
                raise ValueError(
                    f"data.cache serves all stages, and stages.{name}.model.{key} differs: set data.cache=False"
                )
        if stage.data.image_aspect != cfg.data.image_aspect:
            raise ValueError(
                f"data.cache needs one image_aspect in all stages; stage {name} has {stage.data.image_aspect!r}"
            )
        datasets.append(stage.data.train)
        if stage.get("evaluation"):
            evaluations.append(stage.evaluation.dataset)
    training = {key: source for config in _distinct(datasets) for key, source in DATASETS.build(config).pictures()}
    evaluated = {key: source for config in _distinct(evaluations) for key, source in DATASETS.build(config).pictures()}
    return list(training), training | evaluated


def _distinct(configs: list) -> list:
    return [config for i, config in enumerate(configs) if config not in configs[:i]]


def _fit(target: dict, folder: Path, encoder, cache: FeatureCache, keys: list[str], seed: int) -> None:
    if folder.is_dir():
        return
    logger.info("fitting the tokenizer of target %r on %d pictures", target["name"], len(keys))
    tokenizer = build_tokenizer(target["tokenizer"], encoder)
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed)).tolist()
    statistics = tokenizer.fit(cache.batches([keys[i] for i in order]), seed=seed, **target["fit"])
    tokenizer.save_pretrained(folder)
    for name, values in statistics.items():
        logger.info("  %s by depth: %s", name, ", ".join(f"{value:.3f}" for value in values))
