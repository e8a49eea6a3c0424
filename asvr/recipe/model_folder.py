"""The weights of a model folder, and a model that training begins with them."""

import logging
from pathlib import Path

import torch
from torch import nn

from asvr.base.checkpoint_files import open_checkpoint
from asvr.base.files import sha256_of
from asvr.models.component import fingerprint_of, source_of
from asvr.models.tree import KEPT, is_trained
from asvr.recipe.config import MODEL_FILE
from asvr.recipe.model_file import read_description

logger = logging.getLogger("asvr")

OF_TARGETS = ("heads", "tokenizers", "losses", "teachers")  # attributes of a VLM that hold parts of its targets
SEPARATORS = "separators."


def why_no_model(folder: Path) -> str:
    expected = f"expected a folder with {MODEL_FILE} or a run's work dir with config.py"
    if not folder.exists():
        return f"{folder}: there is no such folder; {expected}"
    if folder.suffix == ".py":
        return f"{folder} is a config: train it with asvr train, and give its work dir; {expected}"
    if (run := next((p for p in folder.absolute().parents if (p / "config.py").is_file()), None)) is not None:
        return f"{folder} is a part of the run {run}: give that"
    if folder.is_file() or any(any(folder.glob(f"*{suffix}")) for suffix in (".safetensors", ".bin", ".pt")):
        return f"{folder}: a checkpoint of other software? `asvr convert import` makes a folder of it; {expected}"
    return f"{folder}: neither a folder with {MODEL_FILE} nor a run's work dir with config.py"


def read_weights(folder: Path, description: dict) -> dict[str, torch.Tensor]:
    """All tensors of a folder. Raises ``ValueError`` where a file is missing or is not the one that was written."""
    for name, expected in description["sha256"].items():
        if not (folder / name).is_file() or sha256_of(folder / name) != expected:
            raise ValueError(f"{folder / name}: missing or damaged (its SHA-256 is not the one written)")
    checkpoint = open_checkpoint(folder)
    return {key: checkpoint[key] for key in checkpoint.keys()}


def load_into(model: nn.Module, weights: dict[str, torch.Tensor], source: Path) -> None:
    """Load weights strictly; only tied copies, which the file leaves out, may be missing, and all weights of losses,
    which earlier versions did not save."""
    own = model.state_dict()
    unsaved = {key: value for key, value in own.items() if _is_of_losses(key)}
    if unsaved and not any(_is_of_losses(key) for key in weights):
        logger.warning("%s: an earlier version, which saved no weights of losses: they are as they were built", source)
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
    """Give a model the weights of a folder, to train it on. cached: features and codes of the model as it is are
    in use already, so its encoder and tokenizers must be the folder's: ``ValueError`` where they are not."""
    parts = model.components()
    before = {name: fingerprint_of(part) for name, part in parts.items() if _makes_targets(name)}
    weights = read_weights(folder, read_description(folder))
    weights = _without_other_targets(model, weights, folder)
    new = _new_targets(model, weights, folder)
    own = {key: value for key, value in model.state_dict().items() if key.startswith((*_prefixes(new), SEPARATORS))}
    if any(key.startswith(SEPARATORS) and key not in weights for key in own):
        tell_new_separators(model, folder)
    if not model.layout.num_separators and (surplus := [key for key in weights if key.startswith(SEPARATORS)]):
        logger.info("%s: its separators are left out, since model.layout has none", folder)
        weights = {key: value for key, value in weights.items() if key not in surplus}
    load_into(model, weights | {key: value for key, value in own.items() if key not in weights}, folder)
    for target in model.targets:
        if target.name in new:
            target.start(model)
    other = [name for name, fingerprint in before.items() if fingerprint_of(parts[name]) != fingerprint]
    if cached and other:
        raise ValueError(
            f"init={str(folder)!r}: its {', '.join(other)} differ from the config's, whose outputs are cached: "
            "set data.cache=False, or name the same weights in the config"
        )
    for name, part in parts.items():
        if name in KEPT or not part.state_dict():  # checkpoints hold the former always: they move without training
            continue
        if name in other or name not in before or source_of(part) is None:
            part.source = str(folder)


def tell_new_separators(model: nn.Module, folder: Path) -> None:
    """Of a start with weights of a model that saw images whole."""
    if is_trained(model.separators):
        logger.info("%s has no separators of model.layout: they are new", folder)
    else:
        logger.warning(
            "%s has no separators of model.layout, and this stage does not train the new ones, which are drawn: name "
            "'projector' in its `train`",
            folder,
        )


def _new_targets(model: nn.Module, weights: dict, folder: Path) -> list[str]:
    """The targets that a folder does not have (an imported LLaVA has none): their weights are as they were built.
    Raises ``ValueError`` where their heads are not trained."""
    own = model.state_dict()
    new = [
        target.name
        for target in model.targets
        if any(key.startswith(_prefixes([target.name])) for key in own)
        and not any(key.startswith(_prefixes([target.name])) for key in weights)
    ]
    if idle := [name for name in new if name in model.heads and not is_trained(model.heads[name])]:
        raise ValueError(
            f"init={str(folder)!r} has no heads of {', '.join(idle)}, and the stage leaves them untrained: name "
            "'heads' in its `train`, or leave these targets out"
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
        logger.info("%s: its targets %s are left out, since the stage does not have them", folder, ", ".join(names))
    gone = {key for keys in names.values() for key in keys}
    return {key: value for key, value in weights.items() if key not in gone}


def _prefixes(names: list[str]) -> tuple[str, ...]:
    """Of the weights of these targets."""
    return tuple(f"{part}.{name}." for part in OF_TARGETS for name in names)


def _makes_targets(name: str) -> bool:
    return name == "encoder" or name.startswith("tokenizer.")
