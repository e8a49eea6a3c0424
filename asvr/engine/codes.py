"""Computes target codes before training, for ``asvr cache-codes`` and ``data.cache='codes'``."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from torch.utils.data import DataLoader, Dataset

from asvr.base.disk import require_room
from asvr.base.interruption import obey_parent_alone
from asvr.base.log import logger, progress_bar, set_up_logging
from asvr.caches.codes import CodeCache, CodeStore, hash_images
from asvr.data.images import MAX_PIXELS, open_image
from asvr.data.layouts import layout_config
from asvr.data.refusals import Refused
from asvr.data.transforms import move, stacked
from asvr.data.workers import TIMEOUT, items_of, require_room_for_workers
from asvr.engine.ahead import encoder_ahead, is_code_target, tokenizer_ahead
from asvr.models.component import fingerprint_of, without_weights
from asvr.models.targets import shares_encoder
from asvr.recipe.build import build_device
from asvr.recipe.images import images_of_stages
from asvr.recipe.preflight import preflight
from asvr.recipe.recipe import CACHE, Recipe, load_recipe
from asvr.registry import TEXT_TOKENIZERS

BATCH = 32
AHEAD = 2  # batches that each worker keeps ready


def code_caches(
    recipe: Recipe,
    root: Path,
    vocab_size: Callable[[], int],
    *,
    shard: tuple[int, int] = (0, 1),
    workers: int | None = None,
) -> tuple[dict[str, CodeCache], dict[str, str]]:
    """Compute the codes of all images of all stages, with every target's tokenizer, and keep them under ``root``.

    Codes that are there already are reused. Returns a cache for each ``image_aspect`` of the stages, with the images
    and targets of these stages, and the tokenizers' fingerprints by the names of `VLM.components`. vocab_size: see
    `tokenizer_ahead`. shard: (i, n) computes every n-th image, starting with the i-th. Other processes compute the
    rest, and the caches are complete when all are done. workers: processes that open images; None:
    ``data.num_workers``.

    Raises ``ValueError`` if stages disagree on a target's codes, if a tokenizer is fitted in the run, or if the disk is
    too small. Raises `Refused` for an image that cannot be read, if ``on_error`` is ``'raise'``.
    """
    targets, groups = distinct_targets(recipe), recipe.by_image_aspect()
    images = {aspect: images_of_stages(group)[1] for aspect, group in groups.items()}
    device = build_device(recipe.runtime.device)
    encoder = encoder_ahead(recipe, device)
    hashes = hash_images(root, {key: source for own in images.values() for key, source in own.items()})
    caches = {aspect: CodeCache({key: hashes[key] for key in own}, {}) for aspect, own in images.items()}
    limits = dict(shard=shard, budget_gb=recipe.shared("cache_budget_gb", CACHE))
    fingerprints = {}
    for name, target in targets.items():
        tokenizer = tokenizer_ahead(recipe, target, encoder, device, vocab_size)
        fingerprints[f"tokenizer.{name}"] = fingerprint_of(tokenizer)
        shared = recipe.first.model.encoder if shares_encoder(tokenizer, encoder) else None
        for aspect, group in groups.items():
            if name not in distinct_targets(group):
                continue
            store = caches[aspect].stores[name] = store_of(root, name, tokenizer, target, aspect, shared)
            what = f"{name} with image_aspect={aspect!r}" if len(groups) > 1 else name
            sources = {hashes[key]: source for key, source in images[aspect].items()}
            _complete(store, tokenizer, sources, group.first.data, device, workers, what=what, **limits)
    return caches, fingerprints


def _complete(
    store: CodeStore,
    tokenizer,
    sources: dict,
    data: Config,
    device,
    workers: int | None,
    *,
    what: str,
    shard: tuple[int, int],
    budget_gb: float | None,
) -> None:
    """Compute the codes of a shard that the store does not have. sources: SHA-256 -> image. what: the codes in words.
    The other arguments are as in `code_caches`."""
    missing = [sha256 for sha256 in sources if sha256 not in store.rows]  # refused images are tried again
    share = set(list(sources)[shard[0] :: shard[1]])  # of all images, so that others' progress does not change it
    own = {sha256: sources[sha256] for sha256 in missing if sha256 in share}
    _log_state(store, what, len(sources), len(missing), len(own), budget_gb)
    if own:
        workers = data.num_workers if workers is None else workers
        _compute(store, tokenizer, own, data, device, workers, part=f"{shard[0]}-of-{shard[1]}", what=what)
        store.reload()
    assert shard[1] > 1 or all(sha256 in store for sha256 in sources)


def distinct_targets(recipe: Recipe) -> dict[str, ConfigDict]:
    """The targets of all stages, by name. Raises ``ValueError`` if two of the same name have different codes."""
    found: dict[str, ConfigDict] = {}
    first = recipe.first
    for name, stage in recipe.stages.items():
        if layout_config(stage.model)["type"] != "WholeImage":
            raise ValueError(
                "a cache of codes alone (data.cache='codes') keeps those of whole images, and "
                f"stages.{name}.model.layout may cut them into crops: set data.cache=True, or False"
            )
        if stage.model.encoder != first.model.encoder:
            raise ValueError(f"data.cache='codes': stages.{name} has another encoder: set data.cache=False")
        for target in stage.model.reconstruction:
            if "fit" in target:
                raise ValueError(
                    f"reconstruction target {target['name']!r} has `fit`: fit it first with asvr train-tokenizer "
                    "and name its folder, or set data.cache=True"
                )
            if not is_code_target(target):  # its truth is computed in the training step
                continue
            if found.setdefault(target["name"], target)["tokenizer"] != target["tokenizer"]:
                raise ValueError(
                    f"data.cache='codes': stages.{name} has another tokenizer for target {target['name']!r}: give the "
                    "targets different names, or set data.cache=False"
                )
    return found


def store_of(root: Path, name: str, tokenizer, target: dict, aspect: str, encoder: dict | None) -> CodeStore:
    """The store of a target's codes. encoder: the config of the model's encoder, if the tokenizer quantises its
    features, else None."""
    depends_on = dict(
        encoder=None if encoder is None else without_weights(encoder, nested=True),
        fingerprint=fingerprint_of(tokenizer),
        transform=str(tokenizer.transform),
        aspect=aspect,
        tokenizer=without_weights(target["tokenizer"]),
    )
    shape = (tokenizer.num_tokens, tokenizer.depth)
    return CodeStore(root, name, depends_on=depends_on, shape=shape, size=max(tokenizer.codebook_sizes))


def _log_state(store: CodeStore, what: str, images: int, missing: int, own: int, budget_gb: float | None) -> None:
    if not missing:
        logger.info("codes of %s: all %d images are in %s", what, images, store.folder)
        return
    logger.info("codes of %s: %d of %d images are missing in %s", what, missing, images, store.folder)
    require_room(store.folder, own * store.row_bytes, f"codes of {own} images", budget_gb)


class _Images(Dataset):
    """Images to encode. An item is (sha256, pixels or None, message and reason of a refused image or None)."""

    def __init__(self, sources: dict, transform, data: Config):
        self.items, self.transform, self.aspect = list(sources.items()), transform, data.image_aspect
        self.max_pixels = getattr(data, "max_pixels", None) or MAX_PIXELS

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple:
        sha256, source = self.items[i]
        try:
            return sha256, self.transform(open_image(source, max_pixels=self.max_pixels), self.aspect), None
        except Refused as error:
            return sha256, None, (str(error), error.reason)


def _compute(
    store: CodeStore, tokenizer, sources: dict, data: Config, device, workers: int, *, part: str, what: str
) -> None:
    if workers:
        pixels, batches = torch.empty(3, *tokenizer.transform.size), f"batches of {BATCH} images"
        require_room_for_workers(pixels, share=BATCH, files=BATCH, workers=workers, ahead=AHEAD, what=batches)
    loader = DataLoader(
        _Images(sources, tokenizer.transform, data),
        BATCH,
        num_workers=workers,
        collate_fn=list,
        pin_memory=False,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=obey_parent_alone,
        prefetch_factor=AHEAD if workers else None,
        timeout=(data.get("worker_timeout") or TIMEOUT) if workers else 0,
    )
    with (
        store.writer(part) as writer,
        progress_bar(total=len(sources), desc=f"codes {what}", unit="image") as bar,
    ):
        for batch in items_of(loader):
            for sha256, _, refused in batch:
                if refused is not None and data.on_error == "raise":
                    raise Refused(*refused)
                if refused is not None:
                    logger.warning("left out: %s", refused[0])
                    writer.refuse(sha256, *refused)
            good = [(sha256, pixels) for sha256, pixels, refused in batch if refused is None]
            if good:
                hashes, pixels = zip(*good, strict=True)
                with torch.inference_mode():
                    writer.add(list(hashes), tokenizer.encode(move(stacked(list(pixels)), device)))
            bar.update(len(batch))


def run_config(path: str, *, out: Path | None, shard: str, workers: int | None, cfg_options: dict | None) -> None:
    """Run ``asvr cache-codes``. Raises ``ValueError`` with all problems of the config."""
    recipe = load_recipe(path, cfg_options)
    preflight(recipe)
    index, count = parse_shard(shard)
    out = out or recipe.shared("cache_dir", CACHE)
    if out is None:
        raise ValueError("there is no folder for the codes: give --out DIR, or set data.cache_dir in the config")
    set_up_logging(Path(out) / f"cache_codes.{index}-of-{count}.log")

    def vocab_size() -> int:
        return TEXT_TOKENIZERS.build(recipe.text_tokenizer).num_ids

    code_caches(recipe, Path(out), vocab_size, shard=(index, count), workers=workers)
    print(f"train with data.cache='codes', data.cache_dir={str(out)!r}")


def parse_shard(shard: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not int(match[1]) < int(match[2]):
        raise ValueError(f"--shard {shard}: expected i/n with i from 0 to n - 1, such as 0/4")
    return int(match[1]), int(match[2])
