"""What the result of a stage depends on, and whether a checkpoint was made with the same."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from asvr.base.log import logger
from asvr.data.chat_template import chat_template_digest
from asvr.engine import checkpoint
from asvr.models.component import WEIGHT_FIELDS
from asvr.recipe.components import OWN, find
from asvr.recipe.config import is_model_folder
from asvr.recipe.recipe import Stage
from asvr.registry import ENCODERS, HEADS, LLMS, PROJECTORS, VISUAL_TOKENIZERS

# Settings that are no part of what a stage is.
_LEFT_OUT = (
    "runtime.log_interval",
    "runtime.checkpoint_interval",
    "runtime.keep_checkpoints",
    "runtime.max_skipped",
    "runtime.async_checkpoint",
    "runtime.profile",
    "data.num_workers",
    "data.worker_timeout",
    "data.cache_dir",
    "data.cache_budget_gb",
    "evaluation",
    "validation",
)
# Settings that may change between an interrupted run and its continuation: samples and objective of a step stay.
_FREE = (
    "data.micro_batch",
    "data.pack",
    "data.group",
    "data.cache",
    "data.on_error",
    "data.max_pixels",
    "runtime.device",
    "runtime.attention",
    "runtime.compile",
    "model.llm.activation_checkpointing",
)
# How a step is split decides what these draw.
_DRAWING = ("data.micro_batch", "data.pack", "data.group")
# What is refused is left out of its batch, and no other sample moves: so that a run goes on behind a bad record.
_REFUSING = ("data.on_error", "data.max_pixels")
# Fields that say where a dataset's files are: its fingerprint stands for what is in them.
_PLACES = ("ann_file", "files")
# Fields that say where its images are: the digest of images in a checkpoint stands for them. An older one has none.
_IMAGE_PLACES = ("image_folder", "root")
_RENAMED = dict(max_pictures="max_images")  # fields of data sets, whose old names stand in earlier checkpoints
_TEXT_TOKENIZER, _FINGERPRINT = "text_tokenizer", "text_tokenizer.fingerprint"
_CHAT_TEMPLATE, _CHAT_FILE = "data.chat_template", "data.template.chat_template"  # its digest, and where it may be read
_WEIGHED = (ENCODERS, PROJECTORS, LLMS, VISUAL_TOKENIZERS, HEADS)


def identity(stage: Stage, text_tokenizer) -> dict:
    """Dotted key -> value of every setting that the result depends on, and what it was resolved to."""
    flat: dict = {"init": stage.init, _FINGERPRINT: text_tokenizer.fingerprint()}
    if (digest := chat_template_digest(stage.data.template, text_tokenizer)) is not None:
        flat[_CHAT_TEMPLATE] = digest

    def visit(prefix: str, value) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                visit(f"{prefix}.{key}" if prefix else key, item)
        else:
            flat[prefix] = json.loads(json.dumps(value))

    for key, value in stage.to_dict().items():
        visit(key, value)
    return {key: value for key, value in flat.items() if not _is_under(key, _LEFT_OUT)}


def check_same_config(folder: Path, own: dict) -> dict[str, tuple]:
    """What differs between a checkpoint's `identity` and this one, and may: key -> (there, here).

    Raises ``ValueError`` where anything else does, with what it is.
    """
    meta = checkpoint.read_meta(folder)
    there = {k: v for k, v in meta["config"].items() if not _is_under(k, _LEFT_OUT)}
    different = {key: (there.get(key), own.get(key)) for key in own.keys() | there.keys()}
    different = {key: pair for key, pair in sorted(different.items()) if pair[0] != pair[1]}
    places = _PLACES if meta.get("images") is None else _PLACES + _IMAGE_PLACES
    essence = _essence(there, places), _essence(own, places)
    if is_model_folder(own["init"]):  # its digest is compared with the checkpoint's `start`
        essence[0]["init"] = own["init"]
    wrong = [key for key in different if essence[0].get(key) != essence[1].get(key)]
    if wrong:
        listing = "; ".join(_difference(key, *(own.get(key) for own in essence)) for key in wrong[:5])
        raise ValueError(
            f"{folder} belongs to another configuration ({listing}). "
            "Give the options it was trained with, take another --work-dir, or train anew with --resume never"
        )
    return different


def other_places(different: dict, section: str) -> bool:
    """Whether files of ``section`` are read from elsewhere: what is in them is to be compared."""
    return any(_is_under(key, (section,)) and not _is_under(key, _FREE) for key in different)


def architecture(model, config: dict) -> dict[str, str]:
    """Digests, by part, of all that decides what a model computes besides its weights, wherever its files lie."""
    told = model.portable(config)
    told["llm"] = {key: value for key, value in told["llm"].items() if key != "activation_checkpointing"}
    texts = {part: json.dumps(own, sort_keys=True, default=str) for part, own in told.items() if part != "type"}
    return {part: hashlib.sha256(text.encode()).hexdigest()[:16] for part, text in texts.items()}


def tell_changes(different: dict, stage: Stage) -> None:
    """One line for each setting with which a stage goes on in another way than before."""
    draws = any(isinstance(entry.get("supervise"), int) for entry in stage.model.reconstruction)
    leaves = [leaf for key, pair in different.items() for leaf in _leaves(key, *pair)]
    for key, there, here in leaves:
        told = "samples and objective of a step are the same"
        if _is_under(key, ("data.train",)):
            told = "the records are the same, and so are the images of them that were compared"
        elif _is_under(key, _REFUSING):
            told = "other records may be left out of their steps, none is added or moved"
        elif _is_under(key, _DRAWING):
            what = "the tokens that `supervise` draws and any dropout" if draws else "any dropout"
            told += f", but for {what}, which draw anew"
        logger.info("goes on with %s=%r (was %r): %s", key, here, there, told)


def _essence(flat: dict, places: tuple[str, ...]) -> dict:
    """An `identity` without what may change. Where files lie may: fingerprints of what is in them are compared.
    places: the fields of a dataset that say so."""
    found = {}
    for key, value in flat.items():
        parent, _, last = key.rpartition(".")
        if key == _CHAT_FILE or _is_under(key, _FREE) or (_is_under(key, (_TEXT_TOKENIZER,)) and key != _FINGERPRINT):
            continue
        if _is_under(key, ("data.train",)):
            if last in places:
                continue
            value = _without(value, lambda config: places)
            key = f"{parent}.{_RENAMED.get(last, last)}"
        elif _is_under(key, ("model",)):
            if last in _files_of({"type": flat.get(f"{parent}.type")}):
                continue
            value = _without(value, _files_of)
        found[key] = value
    return found


def _files_of(config: dict) -> tuple[str, ...]:
    """The fields that name files of weights. What a user's own component makes of such a name is not known here."""
    kinds = (find(registry, config.get("type")) for registry in _WEIGHED)
    kind = next((kind for kind in kinds if kind is not None), None)
    return WEIGHT_FIELDS if kind is not None and kind.__module__.startswith(OWN) else ()


def _without(value, fields: Callable[[dict], tuple]):
    """Without some fields of every component in a list of them; fields: of a component's config."""
    if isinstance(value, list):
        return [_without(item, fields) for item in value]
    if isinstance(value, dict):
        gone = fields(value) if "type" in value else ()
        return {key: _without(item, fields) for key, item in value.items() if key not in gone}
    return value


def _is_under(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _difference(key: str, there, here) -> str:
    key, there, here = next(_leaves(key, there, here))
    return f"{key}: {there!r} there, {here!r} here"


def _leaves(key: str, there, here) -> Iterator[tuple]:
    """Key and both values of all that differs, as far down as both have it."""
    if isinstance(there, dict) and isinstance(here, dict) and there.keys() == here.keys():
        inner = list(there)
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        inner = range(len(there))
    else:
        yield key, there, here
        return
    for name in inner:
        if there[name] != here[name]:
            yield from _leaves(f"{key}.{name}", there[name], here[name])
