"""Prepares a run before training: caches features and codes of frozen parts, and fits codebooks on the training
images."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asvr.base.log import logger
from asvr.caches.codes import CodeCache, hash_images
from asvr.caches.features import FeatureCache, build_feature_cache, folder_of
from asvr.caches.pixels import pixel_batches
from asvr.data.images import LARGEST_LIMIT, MAX_PIXELS, image_size
from asvr.data.layouts import ImageLayout, WholeImage, build_layout, layout_config
from asvr.data.refusals import Refused
from asvr.data.transforms import move
from asvr.engine.ahead import encoder_ahead, is_code_target, is_drawn, truth_ahead
from asvr.engine.codes import code_caches
from asvr.models.component import fingerprint_of, without_weights
from asvr.models.targets import build_tokenizer, shares_encoder
from asvr.recipe.build import build_device
from asvr.recipe.images import images_of_stages, record_of_image
from asvr.recipe.recipe import CACHE, Recipe, Stage
from asvr.registry import ENCODERS

STATISTICS = dict(  # the results of `fit` in words, for the log
    usage="codes in use, %",
    perplexity="perplexity of the codes",
    relative_error="squared error / variance of the features",
)


@dataclass
class Prepared:
    """The result of `prepare`, which all stages use.

    recipe: the recipe; a fitted tokenizer has the ``name`` of its folder in place of ``fit``.
    caches: for each ``image_aspect``, features and codes of all images of its stages, or only codes. It is empty if
        ``data.cache`` is off.
    fingerprints: of the parts that computed the caches, by the names of `VLM.components`. The parts of a stage must
        have the same.
    """

    recipe: Recipe
    text_tokenizer: object
    caches: dict[str, FeatureCache | CodeCache] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)

    def cache(self, stage: Stage) -> FeatureCache | CodeCache | None:
        """The cache that a stage reads; None if there is none."""
        return self.caches.get(stage.data.image_aspect)


def prepare(recipe: Recipe, work_dir: Path, text_tokenizer) -> Prepared:
    """Compute all that is needed before the first stage. Results that exist already are reused.

    If a target has ``fit``, its tokenizer is fitted on the training images and saved under
    ``work_dir/tokenizers/<target>-<digest of all that the fit depends on>``. ``recipe`` itself is not changed, so it
    does not depend on the work dir.
    """
    cached = recipe.shared("cache", CACHE)
    root = Path(recipe.shared("cache_dir", CACHE) or work_dir / "cache")
    if cached == "codes":
        return Prepared(recipe, text_tokenizer, *code_caches(recipe, root, lambda: text_tokenizer.num_ids))
    fits = [entry["name"] for entry in recipe.targets() if "fit" in entry]
    if not cached:
        if fits:
            raise ValueError(f"reconstruction target {fits[0]!r} has `fit`, which needs data.cache=True")
        return Prepared(recipe, text_tokenizer)

    _require_one_encoder(recipe)
    groups = recipe.by_image_aspect()
    device = build_device(recipe.runtime.device)
    encoder = encoder_ahead(recipe, device)
    images = {aspect: images_of_stages(group) for aspect, group in groups.items()}
    caches = {
        aspect: _features(recipe, root, encoder, all_images, aspect, device)
        for aspect, (_, all_images) in images.items()
        if all_images or fits  # else there is nothing to compute
    }
    if not caches:
        return Prepared(recipe, text_tokenizer)
    if fits:
        ((aspect, (training, all_images)),) = images.items()  # see `_require_one_encoder`
        training = {key: all_images[key] for key in training if key in caches[aspect].crops}
        recipe = recipe.with_fitted(_fit_all(recipe, work_dir, encoder, caches[aspect], training, device))
    fingerprints = dict(encoder=fingerprint_of(encoder))
    opened = dict(layout=build_layout(recipe.first.model, encoder), device=device)
    room = dict(budget_gb=recipe.shared("cache_budget_gb", CACHE))
    for name, target in {entry["name"]: entry for entry in recipe.targets()}.items():
        own = truth_ahead(recipe, target, encoder, device, lambda: text_tokenizer.num_ids)
        if own is None:
            continue
        if own.teacher is not None:
            fingerprints[f"tokenizer.{name}"] = fingerprint_of(own.teacher)
        config = without_weights(target["tokenizer"]) if is_code_target(target) else _unweighted(target)
        for aspect, cache in caches.items():
            if name in [entry["name"] for entry in groups[aspect].targets()]:
                if len(caches) > 1:
                    logger.info("truth of target %r with image_aspect=%r", name, aspect)
                cache.add_truth(own, images=images[aspect][1], aspect=aspect, config=config, **opened, **room)
    return Prepared(recipe, text_tokenizer, caches, fingerprints)


def _features(recipe: Recipe, root: Path, encoder, images: dict, aspect: str, device) -> FeatureCache:
    if len(recipe.by_image_aspect()) > 1:
        logger.info("features of %d images with image_aspect=%r", len(images), aspect)
    try:
        return build_feature_cache(
            root,
            encoder,
            images,
            aspect,
            device,
            layout=build_layout(recipe.first.model, encoder),
            config=without_weights(recipe.first.model.encoder, nested=True),
            on_error=recipe.shared("on_error", CACHE),
            max_pixels=recipe.shared("max_pixels", CACHE) or MAX_PIXELS,
            budget_gb=recipe.shared("cache_budget_gb", CACHE),
        )
    except Refused as error:
        if (place := record_of_image(recipe, str(error))) is None:
            raise
        raise Refused(f"{place}: {error}", error.reason) from error


def _fit_all(recipe: Recipe, work_dir: Path, encoder, cache: FeatureCache, images: dict, device) -> dict[str, str]:
    """Fit the tokenizers of all targets with ``fit``. Returns the folder of each target's tokenizer. images: those of
    the training data in the cache."""
    fitted = {}
    for target in recipe.targets():
        if "fit" not in target:
            continue
        folder = _fit_folder(work_dir, recipe, target, encoder, cache, images)
        if not folder.is_dir():
            opened = dict(images=images, layout=build_layout(recipe.first.model, encoder))
            aspect, seed = recipe.first.data.image_aspect, recipe.runtime.seed
            _fit(target, folder, encoder, cache, seed=seed, device=device, aspect=aspect, **opened)
        fitted[target["name"]] = str(folder)
    return fitted


def _require_one_encoder(recipe: Recipe) -> None:
    """Raise ``ValueError`` if the features and codes of one encoder, one layout and one tokenizer for each target
    cannot serve all stages."""
    first = recipe.first
    for name, stage in recipe.stages.items():
        if "encoder" in stage.trained_components:
            raise ValueError(
                f"data.cache holds features of a frozen encoder, and stage {name} trains it: set data.cache=False"
            )
        if stage.model.encoder != first.model.encoder:
            raise ValueError(
                f"data.cache serves all stages, and stages.{name}.model.encoder differs: set data.cache=False"
            )
        if layout_config(stage.model) != layout_config(first.model):
            raise ValueError(
                f"data.cache serves all stages, and stages.{name}.model.layout differs: set data.cache=False"
            )
    aspects, codes = list(recipe.by_image_aspect()), {}
    for entry in recipe.targets():
        if "fit" in entry and len(aspects) > 1:
            raise ValueError(
                f"reconstruction target {entry['name']!r} has `fit`, and data.image_aspect differs between stages "
                f"({', '.join(map(repr, aspects))}): set the same one in all stages, or fit the tokenizer first with "
                "asvr train-tokenizer and name its folder"
            )
        own = (entry["tokenizer"], entry.get("fit")) if is_code_target(entry) else _unweighted(entry)
        if codes.setdefault(entry["name"], own) != own:
            raise ValueError(
                f"data.cache serves all stages, and target {entry['name']!r} has several "
                f"{'tokenizers' if is_code_target(entry) else 'settings'}: give the targets different names, or set "
                "data.cache=False"
            )


def _unweighted(entry: dict) -> dict:
    """The settings of a user's own target that may change its truth.

    Names of weights are left out, since fingerprints of the weights are compared."""
    return {
        key: without_weights(value) if isinstance(value, dict) else value
        for key, value in entry.items()
        if key != "weight"
    }


def _fit_folder(work_dir: Path, recipe: Recipe, target: dict, encoder, cache: FeatureCache, images: dict) -> Path:
    """The folder of a fitted tokenizer. Its name is a digest of all that the fit depends on.

    It does not depend on the places of images: a run whose images have moved must find its fit again, since a second
    fit on CUDA gives other codebooks. Earlier versions used the places too, so their name is looked up first."""
    place, seed, first = work_dir / "tokenizers", recipe.runtime.seed, recipe.first
    earlier = place / f"{target['name']}-{_fit_digest(target, cache.folder.name, list(images), seed)}"
    if earlier.is_dir():
        return earlier
    root = cache.folder.parent
    layout, config = build_layout(first.model, encoder), without_weights(first.model.encoder, nested=True)
    if type(layout) is not WholeImage:
        config = dict(config, layout=layout.cells_key())
    features = folder_of(root, encoder, {}, first.data.image_aspect, config).name
    contents = list(hash_images(root, images).values())
    return place / f"{target['name']}-{_fit_digest(target, features, contents, seed)}"


def _fit_digest(target: dict, features: str, images: list[str], seed: int) -> str:
    """features: the name of the folder of features, which depends on the encoder."""
    parts = [target["tokenizer"].to_dict(), target["fit"].to_dict(), features, images, seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _fit(
    target: dict,
    folder: Path,
    encoder,
    cache: FeatureCache,
    *,
    images: dict,
    layout: ImageLayout,
    aspect: str,
    seed: int,
    device,
) -> None:
    """Fit a target's tokenizer on the features that it will quantise: cached ones, or those of its own encoder."""
    own = target["tokenizer"].get("encoder")
    if own and is_drawn(lambda: ENCODERS.build(own)):
        raise ValueError(
            f"reconstruction target {target['name']!r}: the encoder of its tokenizer has random weights, so a "
            "tokenizer that is fitted on its features could not be used again: name weights for this encoder"
        )
    logger.info("fitting the tokenizer of target %r on %d images", target["name"], len(images))
    tokenizer = build_tokenizer(target["tokenizer"], encoder).to(device)
    keys = list(images)
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed)).tolist()
    keys = [keys[i] for i in order]
    batches = cache.batches(cache.crops_of(keys))
    if layout.fixed is None:
        batches = _with_tokens(batches, keys, images, layout)
    if not shares_encoder(tokenizer, encoder):
        found = pixel_batches(keys, images, [tokenizer.transform], aspect, layout=layout)
        batches = (tokenizer.features(move(pixels, device)) for _, pixels in found)
    statistics = tokenizer.fit(batches, seed=seed, **target["fit"])
    tokenizer.save_pretrained(folder)
    for name, values in statistics.items():
        logger.info("  %s, by depth: %s", STATISTICS.get(name, name), ", ".join(f"{value:.3f}" for value in values))


def _with_tokens(batches: Iterable[Tensor], keys: list[str], images: dict, layout: ImageLayout) -> Iterator[Tensor]:
    """Yield the features of the cells that have a token, (..., E). keys: of the images, in the order of the batches."""
    kept = (cells_N for key in keys for cells_N in _cells_with_token(layout, images[key]))
    for features_INE in batches:
        yield torch.cat([features_NE[next(kept)] for features_NE in features_INE])


def _cells_with_token(layout: ImageLayout, image) -> list[np.ndarray]:
    """For each crop of an image, the cells that have a token, in order."""
    own = layout(image_size(image, max_pixels=LARGEST_LIMIT))
    cells = np.sort(own.tokens_L[own.tokens_L >= 0])
    return [cells[cells // layout.num_cells == crop] % layout.num_cells for crop in range(own.num_crops)]
