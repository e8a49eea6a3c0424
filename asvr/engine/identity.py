"""Collects the settings that a stage's result depends on, and compares them with those of a checkpoint."""

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

# Settings that do not change the result of a stage.
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
# Settings that may change when an interrupted run goes on: the samples and the objective of a step stay the same.
_FREE = (
    "data.micro_batch",
    "data.pack",
    "data.group",
    "data.balance",
    "data.cache",
    "data.on_error",
    "data.max_pixels",
    "runtime.device",
    "runtime.attention",
    "runtime.compile",
    "model.llm.activation_checkpointing",
)
# Settings that change how a step is split, and with it the random numbers (dropout, `supervise`).
_DRAWING = ("data.micro_batch", "data.pack", "data.group", "data.balance")
# Settings that decide which records are refused. A refused record is left out of its batch, and no other sample moves.
# They may change so that a run can go on after a bad record.
_REFUSING = ("data.on_error", "data.max_pixels")
# Fields with the places of a data set's files. They may change: the data set's fingerprint is compared instead.
_PLACES = ("ann_file", "files", "path")
# Fields with the places of its images. The digest of images is compared instead. An older checkpoint has no digest.
_IMAGE_PLACES = ("image_folder", "root")
_RENAMED = dict(max_pictures="max_images")  # fields of data sets, whose old names stand in earlier checkpoints
_TEXT_TOKENIZER, _FINGERPRINT = "text_tokenizer", "text_tokenizer.fingerprint"
_CHAT_TEMPLATE, _CHAT_FILE = "data.chat_template", "data.template.chat_template"  # its digest, and its file or text
_WEIGHED = (ENCODERS, PROJECTORS, LLMS, VISUAL_TOKENIZERS, HEADS)


class OtherConfiguration(ValueError):
    """A checkpoint was made with other settings. differences: these settings, in words."""

    def __init__(self, folder: Path, differences: str):
        super().__init__(
            f"{folder} belongs to another configuration ({differences}). Give the options it was trained with, use "
            "another --work-dir, or train from the start with --resume never"
        )
        self.differences = differences


def identity(stage: Stage, text_tokenizer) -> dict:
    """Return every setting that the result depends on, as dotted key -> value, with fingerprints of what it names."""
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
    """Compare a checkpoint's `identity` with ours. Returns the allowed differences: key -> (there, here).

    Raises `OtherConfiguration` that names the differences that are not allowed.
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
        raise OtherConfiguration(folder, listing)
    return different


def other_places(different: dict, section: str) -> bool:
    """Whether files of ``section`` are at another place now, so that their contents must be compared."""
    return any(_is_under(key, (section,)) and not _is_under(key, _FREE) for key in different)


def architecture(model, config: dict) -> dict[str, str]:
    """Digests, by part, of the settings that decide what a model computes. They do not depend on its files' places."""
    settings = model.portable(config)
    settings["llm"] = {key: value for key, value in settings["llm"].items() if key != "activation_checkpointing"}
    texts = {part: json.dumps(own, sort_keys=True, default=str) for part, own in settings.items() if part != "type"}
    return {part: hashlib.sha256(text.encode()).hexdigest()[:16] for part, text in texts.items()}


def tell_changes(different: dict, stage: Stage) -> None:
    """Log one line for each setting that has changed since the checkpoint that a stage goes on from."""
    draws = any(isinstance(entry.get("supervise"), int) for entry in stage.model.reconstruction)
    leaves = [leaf for key, pair in different.items() for leaf in _leaves(key, *pair)]
    for key, there, here in leaves:
        effect = "samples and objective of a step are the same"
        if _is_under(key, ("data.train",)):
            effect = "the records are the same, and so are those images that were compared"
        elif _is_under(key, _REFUSING):
            effect = "other records may be left out of their steps, but none is added or moved"
        elif _is_under(key, _DRAWING):
            what = "the tokens that `supervise` draws and any dropout" if draws else "any dropout"
            effect += f", but new random numbers are drawn for {what}"
        logger.info("goes on with %s=%r (was %r): %s", key, here, there, effect)


def _essence(flat: dict, places: tuple[str, ...]) -> dict:
    """An `identity` without the settings that may change.

    The places of files may change, since fingerprints of their contents are compared. places: the fields of a data set
    with such places."""
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
    """The fields of a component that name files of weights. For a user's own component they are not known."""
    kinds = (find(registry, config.get("type")) for registry in _WEIGHED)
    kind = next((kind for kind in kinds if kind is not None), None)
    return WEIGHT_FIELDS if kind is not None and kind.__module__.startswith(OWN) else ()


def _without(value, fields: Callable[[dict], tuple]):
    """The value without some fields of its components. fields: gives these fields for a component's config."""
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
    return f"{key}: {there!r} in the checkpoint, {here!r} now"


def _leaves(key: str, there, here) -> Iterator[tuple]:
    """Yield the key and both values of each difference, at the deepest level that both sides have."""
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
