"""Reads the weights of a model folder, and starts the training of a model with them."""

import logging
from pathlib import Path

import torch
from torch import nn

from asvr.base.checkpoint_files import open_checkpoint
from asvr.base.files import sha256_of
from asvr.data.text_tokenizer import HFTokenizer
from asvr.data.token_ids import other_ids
from asvr.models.component import fingerprint_of, source_of
from asvr.models.tree import KEPT, is_trained
from asvr.recipe.config import MODEL_FILE
from asvr.recipe.model_file import read_description

logger = logging.getLogger("asvr")

OF_TARGETS = ("heads", "tokenizers", "losses", "teachers")  # attributes of a VLM with parts of its targets
SEPARATORS = "separators."
TEXT_TOKENIZER = "text_tokenizer"  # the folder of its files, inside a model's folder


def why_no_model(folder: Path) -> str:
    """An error message: why a folder is not a model, and what to give instead."""
    expected = f"expected a folder with {MODEL_FILE} or a run's work dir with config.py"
    if not folder.exists():
        return f"{folder}: there is no such folder; {expected}"
    if folder.suffix == ".py":
        return f"{folder} is a config: train it with asvr train, and give its work dir; {expected}"
    if (run := next((p for p in folder.absolute().parents if (p / "config.py").is_file()), None)) is not None:
        return f"{folder} is a part of the run {run}: give that folder instead"
    if runs := sorted(file.parent for places in ("seed_*", "*/seed_*") for file in folder.glob(f"{places}/config.py")):
        return f"{folder} is the folder of a study: give one of its {len(runs)} runs, such as {runs[0]}"
    if folder.is_file() or any(any(folder.glob(f"*{suffix}")) for suffix in (".safetensors", ".bin", ".pt")):
        return f"{folder}: a checkpoint of other software? Convert it with `asvr convert import`; {expected}"
    return f"{folder}: neither a folder with {MODEL_FILE} nor a run's work dir with config.py"


def read_weights(folder: Path, description: dict) -> dict[str, torch.Tensor]:
    """Read all tensors of a folder. Raises ``ValueError`` if a file is missing or has changed since it was written."""
    for name, expected in description["sha256"].items():
        if not (folder / name).is_file() or sha256_of(folder / name) != expected:
            raise ValueError(f"{folder / name}: missing or damaged (its SHA-256 is not the one written)")
    checkpoint = open_checkpoint(folder)
    return {key: checkpoint[key] for key in checkpoint.keys()}


def load_into(model: nn.Module, weights: dict[str, torch.Tensor], source: Path) -> None:
    """Load weights strictly.

    Two kinds may be missing: tied copies, which the file leaves out, and all weights of losses, which earlier versions
    did not save."""
    own = model.state_dict()
    unsaved = {key: value for key, value in own.items() if _is_of_losses(key)}
    if unsaved and not any(_is_of_losses(key) for key in weights):
        logger.warning("%s: an earlier version saved no weights of losses; they keep their first values", source)
        weights = weights | unsaved
    places = {tensor.data_ptr() for key, tensor in own.items() if key in weights}
    missing = [key for key in own if key not in weights and own[key].data_ptr() not in places]
    unexpected = sorted(weights.keys() - own.keys())
    misshaped = [key for key in weights if key in own and own[key].shape != weights[key].shape]
    found = dict(missing=missing, unexpected=unexpected, misshaped=misshaped)
    if any(found.values()):
        listing = "; ".join(f"{kind}: {keys[:5]} ({len(keys)} in all)" for kind, keys in found.items() if keys)
        raise ValueError(f"{source}: its weights do not fit this model: {listing}")
    model.load_state_dict(own | weights)  # a tied copy is loaded from itself: it shares its storage with the other


def _is_of_losses(key: str) -> bool:
    return key.startswith("losses.")


def start_from(model: nn.Module, folder: Path, *, cached: bool) -> None:
    """Load the weights of a folder into a model, to go on training it.

    cached: features and codes of the model's present encoder and tokenizers are in use already. Then the folder's must
    be the same, else ``ValueError`` is raised."""
    parts = model.components()
    before = {name: fingerprint_of(part) for name, part in parts.items() if _makes_targets(name)}
    weights = read_weights(folder, read_description(folder))
    weights = _without_other_targets(model, weights, folder)
    new = _new_targets(model, weights, folder)
    own = {key: value for key, value in model.state_dict().items() if key.startswith((*_prefixes(new), SEPARATORS))}
    if any(key.startswith(SEPARATORS) and key not in weights for key in own):
        tell_new_separators(model, folder)
    if not model.layout.num_separators and (surplus := [key for key in weights if key.startswith(SEPARATORS)]):
        logger.info("%s: its separators are ignored, since model.layout has none", folder)
        weights = {key: value for key, value in weights.items() if key not in surplus}
    load_into(model, weights | {key: value for key, value in own.items() if key not in weights}, folder)
    for target in model.targets:
        if target.name in new:
            target.start(model)
    other = [name for name, fingerprint in before.items() if fingerprint_of(parts[name]) != fingerprint]
    if cached and other:
        raise ValueError(
            f"init={str(folder)!r}: the weights of {', '.join(other)} differ from those that the config names, and "
            "the cache holds outputs of the config's: set data.cache=False, or name the same weights in the config"
        )
    for name, part in parts.items():
        if name in KEPT or not part.state_dict():  # KEPT parts change without training, so checkpoints always have them
            continue
        if name in other or name not in before or source_of(part) is None:
            part.source = str(folder)


def require_same_text_tokenizer(folder: Path, text_tokenizer) -> None:
    """Raise ``ValueError`` if the ids of a run's text tokenizer are not those of the model that it starts from.

    The model would read other words than it has learned. An imported model may have no text tokenizer."""
    own = folder / TEXT_TOKENIZER
    if not own.is_dir():
        return
    if (difference := other_ids(text_tokenizer, HFTokenizer(name=str(own.absolute())))) is not None:
        raise ValueError(
            f"init={str(folder)!r}: text_tokenizer has other ids than this model's ({difference}): set "
            f"text_tokenizer=dict(type='HFTokenizer', name={str(own)!r})"
        )


def tell_new_separators(model: nn.Module, folder: Path) -> None:
    """Log that the separators are new, because the weights come from a model that had none."""
    if is_trained(model.separators):
        logger.info("%s has no separators of model.layout: they are new", folder)
    else:
        logger.warning(
            "%s has no separators of model.layout. The new ones are random, and this stage does not train them: add "
            "'projector' to its `train`",
            folder,
        )


def _new_targets(model: nn.Module, weights: dict, folder: Path) -> list[str]:
    """The names of the model's targets that a folder does not have. (An imported LLaVA has none.)

    Their weights keep their first values. Raises ``ValueError`` if the stage does not train their heads."""
    own = model.state_dict()
    new = [
        target.name
        for target in model.targets
        if any(key.startswith(_prefixes([target.name])) for key in own)
        and not any(key.startswith(_prefixes([target.name])) for key in weights)
    ]
    if idle := [name for name in new if name in model.heads and not is_trained(model.heads[name])]:
        raise ValueError(
            f"init={str(folder)!r} has no heads of {', '.join(idle)}, and the stage does not train them: add "
            "'heads' to its `train`, or leave these targets out"
        )
    if new:
        logger.info("%s: the heads of %s are new", folder, ", ".join(new))
    return new


def _without_other_targets(model: nn.Module, weights: dict, folder: Path) -> dict:
    """The weights without those of targets that the model does not have."""
    own, names = {target.name for target in model.targets}, {}
    for key in weights:
        part, _, rest = key.partition(".")
        if part in OF_TARGETS and (name := rest.partition(".")[0]) not in own:
            names.setdefault(name, []).append(key)
    if names:
        logger.info("%s: its targets %s are ignored, since the stage does not have them", folder, ", ".join(names))
    gone = {key for keys in names.values() for key in keys}
    return {key: value for key, value in weights.items() if key not in gone}


def _prefixes(names: list[str]) -> tuple[str, ...]:
    """How the keys of these targets' weights begin."""
    return tuple(f"{part}.{name}." for part in OF_TARGETS for name in names)


def _makes_targets(name: str) -> bool:
    return name == "encoder" or name.startswith("tokenizer.")
