"""What is computed once before training: features and codes of frozen parts, and codebooks fitted on the
training pictures."""

import copy
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config

from asvr.config import stage_config
from asvr.data.code_cache import CodeCache, hash_pictures
from asvr.data.feature_cache import FeatureCache, build_feature_cache, folder_of, pixel_batches
from asvr.data.images import MAX_PIXELS
from asvr.engine.ahead import encoder_ahead, is_drawn, tokenizer_ahead
from asvr.engine.build import build_device, pictures_of_stages
from asvr.engine.codes import code_cache
from asvr.engine.log import logger
from asvr.models.component import fingerprint_of, without_weights
from asvr.models.targets import build_tokenizer, shares_encoder
from asvr.registry import ENCODERS


@dataclass
class Prepared:
    """What the stages start from.

    cfg: the config, with the folder of a fitted tokenizer as its ``name`` in place of ``fit``.
    cache: features and codes of all pictures, or codes alone; None where ``data.cache`` is off.
    fingerprints: of the parts that computed it, by the names of `VLM.components`: a stage's must be the same.
    """

    cfg: Config
    text_tokenizer: object
    cache: FeatureCache | CodeCache | None
    fingerprints: dict[str, str] = field(default_factory=dict)


def prepare(cfg: Config, work_dir: Path, text_tokenizer) -> Prepared:
    """Everything that stands before the first stage; what is there already is reused.

    A target with ``fit`` gets its tokenizer fitted on the training pictures and saved under
    ``work_dir/tokenizers/<target>-<digest of what it was fitted with>``. ``cfg`` itself is left as it is: it says
    what a run is, wherever it lies.
    """
    cfg = copy.deepcopy(cfg)
    entries = entries_of(cfg)
    root = Path(cfg.data.get("cache_dir") or work_dir / "cache")
    if cfg.data.get("cache", False) == "codes":
        return Prepared(cfg, text_tokenizer, *code_cache(cfg, root, lambda: text_tokenizer.num_ids))
    if not cfg.data.get("cache", False):
        if fitted := [entry["name"] for entry in entries if "fit" in entry]:
            raise ValueError(f"reconstruction target {fitted[0]!r} has `fit`, which needs data.cache=True")
        return Prepared(cfg, text_tokenizer, None)

    device = build_device(cfg.runtime.device)
    encoder = encoder_ahead(cfg, device)
    training, all_pictures = pictures_of(cfg)
    if not all_pictures and not any("fit" in entry for entry in entries):  # there is nothing to compute ahead
        return Prepared(cfg, text_tokenizer, None)
    cache = build_feature_cache(
        root,
        encoder,
        all_pictures,
        cfg.data.image_aspect,
        device,
        config=without_weights(cfg.model.encoder),
        on_error=cfg.data.on_error,
        max_pixels=getattr(cfg.data, "max_pixels", None) or MAX_PIXELS,
        budget_gb=cfg.data.get("cache_budget_gb"),
    )
    training = [key for key in training if key in cache.rows]
    for target in entries:
        if "fit" not in target:
            continue
        pictures = {key: all_pictures[key] for key in training}
        folder = _fit_folder(work_dir, cfg, target, encoder, cache, pictures)
        if not folder.is_dir():
            _fit(target, folder, encoder, cache, pictures, cfg.data.image_aspect, cfg.runtime.seed, device)
        target["tokenizer"]["name"] = str(folder)
        del target["fit"]
    fingerprints = dict(encoder=fingerprint_of(encoder))
    for target in {entry["name"]: entry for entry in entries}.values():
        visual = tokenizer_ahead(cfg, target, encoder, device, lambda: text_tokenizer.num_ids)
        fingerprints[f"tokenizer.{target['name']}"] = fingerprint_of(visual)
        shared = shares_encoder(visual, encoder)
        cache.add_codes(
            target["name"],
            visual,
            shared=shared,
            pictures=all_pictures,
            aspect=cfg.data.image_aspect,
            device=device,
            config=without_weights(target["tokenizer"]),
        )
    return Prepared(cfg, text_tokenizer, cache, fingerprints)


def entries_of(cfg: Config) -> list[dict]:
    """Every entry of every list of reconstruction targets: the model's, and those that stages put in its place."""
    models = [cfg.model, *(stage.get("model") or {} for stage in cfg.stages.values())]
    return [entry for model in models for entry in model.get("reconstruction") or []]


def pictures_of(cfg: Config) -> tuple[list[str], dict]:
    """`pictures_of_stages`, where the cached features of the frozen encoder serve all stages."""
    for name in cfg.stages:
        stage = stage_config(cfg, name)
        if "encoder" in stage.train:
            raise ValueError(
                f"data.cache holds features of a frozen encoder, and stage {name} trains it: set data.cache=False"
            )
        if stage.model.encoder != cfg.model.encoder:
            raise ValueError(
                f"data.cache serves all stages, and stages.{name}.model.encoder differs: set data.cache=False"
            )
        if stage.data.image_aspect != cfg.data.image_aspect:
            raise ValueError(
                f"data.cache needs one image_aspect in all stages; stage {name} has {stage.data.image_aspect!r}"
            )
    codes: dict[str, tuple] = {}
    for entry in entries_of(cfg):
        own = entry["tokenizer"], entry.get("fit")
        if codes.setdefault(entry["name"], own) != own:
            raise ValueError(
                f"data.cache serves all stages, and target {entry['name']!r} has several tokenizers: give the targets "
                "different names, or set data.cache=False"
            )
    return pictures_of_stages(cfg)


def _fit_folder(work_dir: Path, cfg: Config, target: dict, encoder, cache: FeatureCache, pictures: dict) -> Path:
    """Named by all that a fit depends on, and not by where its pictures lie: on CUDA a second one gives other
    codebooks, and a run whose pictures have moved needs its own. Earlier versions named it by that too."""
    place, seed = work_dir / "tokenizers", cfg.runtime.seed
    earlier = place / f"{target['name']}-{_fit_digest(target, cache.folder.name, list(pictures), seed)}"
    if earlier.is_dir():
        return earlier
    root = cache.folder.parent
    features = folder_of(root, encoder, {}, cfg.data.image_aspect, without_weights(cfg.model.encoder)).name
    contents = list(hash_pictures(root, pictures).values())
    return place / f"{target['name']}-{_fit_digest(target, features, contents, seed)}"


def _fit_digest(target: dict, features: str, pictures: list[str], seed: int) -> str:
    """features: stands for the encoder."""
    parts = [target["tokenizer"].to_dict(), target["fit"].to_dict(), features, pictures, seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _fit(
    target: dict, folder: Path, encoder, cache: FeatureCache, pictures: dict, aspect: str, seed: int, device
) -> None:
    """Fit a target's tokenizer on the features that it will quantise: the cached ones, or its own encoder's."""
    own = target["tokenizer"].get("encoder")
    if own and is_drawn(lambda: ENCODERS.build(own)):
        raise ValueError(
            f"reconstruction target {target['name']!r}: the encoder of its tokenizer has random weights, which stand "
            "in no file, so that what is fitted on its features could not be used again: name its weights"
        )
    logger.info("fitting the tokenizer of target %r on %d pictures", target["name"], len(pictures))
    tokenizer = build_tokenizer(target["tokenizer"], encoder).to(device)
    keys = list(pictures)
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed)).tolist()
    keys = [keys[i] for i in order]
    batches = cache.batches(keys)
    if not shares_encoder(tokenizer, encoder):
        found = pixel_batches(keys, pictures, tokenizer.transform, aspect)
        batches = (tokenizer.features(pixels.to(device)) for _, pixels in found)
    statistics = tokenizer.fit(batches, seed=seed, **target["fit"])
    tokenizer.save_pretrained(folder)
    for name, values in statistics.items():
        logger.info("  %s by depth: %s", name, ", ".join(f"{value:.3f}" for value in values))
