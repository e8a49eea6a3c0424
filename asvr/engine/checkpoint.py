"""Checkpoints: a folder with the weights that stand in no other file, and the state to go on from.

``model.safetensors``  weights of every component that was trained or initialised here
``state.pt``           optimiser, schedule, random states (tensors and plain values only)
``checkpoint.json``    step, stage, configuration, fingerprints of the frozen weights, SHA-256 of the two files

A folder is written under a temporary name and renamed when complete, so that a kill leaves no half checkpoint.
"""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from asvr.engine.processes import get_world_size, is_main_process
from asvr.folders import sha256_of
from asvr.models.shards import part_of, unshared, whole

PREFIX = "step_"
FILES = ("model.safetensors", "state.pt")


def random_state() -> dict:
    version, key, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return dict(
        python=[version, list(key), gauss],
        numpy=[kind, keys.tolist(), position, has_gauss, cached],
        torch=torch.get_rng_state(),
        cuda=_cuda_random_states(),
    )


def set_random_state(state: dict) -> None:
    version, key, gauss = state["python"]
    random.setstate((version, tuple(key), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and get_world_size() > 1:
        torch.cuda.set_rng_state(state["cuda"][0])
    elif state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _cuda_random_states() -> list[torch.Tensor]:
    """Of all cards; of its own where there are several processes, each of which would else take memory on all."""
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_rng_state()] if get_world_size() > 1 else torch.cuda.get_rng_state_all()


def own_components(model: nn.Module) -> dict[str, nn.Module]:
    """Components whose weights must be saved: trained ones, and those that were initialised here. The rest is frozen,
    stands in the files it came from, and is named by its fingerprint. Tokenizers have folders of their own."""
    return {
        name: module
        for name, module in model.components().items()
        if not name.startswith("tokenizer.")
        and (getattr(module, "source", None) is None or any(p.requires_grad for p in module.parameters()))
    }


def frozen_fingerprints(model: nn.Module) -> dict[str, dict]:
    own = own_components(model)
    return {
        name: dict(source=module.source, fingerprint=module.fingerprint())
        for name, module in model.components().items()
        if name not in own
    }


def save(folder: Path, *, model: nn.Module, state: dict, meta: dict) -> None:
    """Write ``folder`` atomically. meta: what ``checkpoint.json`` holds besides the hashes. All processes must come
    here, where weights are in parts; the first one writes."""
    weights = {}
    for name, module in own_components(model).items():
        for key, value in unshared(module).items():
            full = whole(value)
            if is_main_process():
                weights[f"{name}.{key}"] = full.cpu().contiguous()
    if not is_main_process():
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(weights, partial / FILES[0])
    torch.save(state, partial / FILES[1])
    hashes = {name: sha256_of(partial / name) for name in FILES}
    (partial / "checkpoint.json").write_text(json.dumps(dict(meta, sha256=hashes), indent=1))
    for file in partial.iterdir():
        _flush(file)
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():  # a step that is saved again; moved away first, so that no half of it keeps the name
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint under ``folder``, or None. Whether its files are whole is seen when they are loaded."""
    found = sorted(folder.glob(f"{PREFIX}*")) if folder.is_dir() else []
    return found[-1] if found else None


def prune(folder: Path, keep: int) -> None:
    for old in sorted(folder.glob(f"{PREFIX}*"))[:-keep]:
        shutil.rmtree(old)


def read_meta(folder: Path) -> dict:
    """What ``checkpoint.json`` says; raises ``ValueError`` where it is missing or damaged."""
    file = folder / "checkpoint.json"
    if not file.is_file():
        raise ValueError(f"{folder} is no checkpoint: it has no checkpoint.json; delete it")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): delete {folder} to go on from the one before") from error


def _whole(folder: Path, name: str) -> Path:
    """The file, when its SHA-256 is the one that was written."""
    file = folder / name
    if not file.is_file() or sha256_of(file) != read_meta(folder)["sha256"][name]:
        raise ValueError(
            f"{file} is damaged (its SHA-256 is not the one written): delete {folder} to go on from the one before"
        )
    return file


def load_weights(folder: Path, model: nn.Module) -> None:
    """Load a checkpoint's weights; strict. What is not in the file must stand in files of its own (an LLM that the
    stage before froze). A component that the model froze may be in the file (a stage before trained it); it then
    counts as initialised here, so that later checkpoints hold it too."""
    with safe_open(_whole(folder, FILES[0]), "pt") as file:
        components = model.components()
        by_component: dict[str, list[str]] = {}
        for key in file.keys():
            name, _, rest = key.partition(".")
            by_component.setdefault(name, []).append(rest)
        _check_components(folder, model, by_component.keys())
        for name, keys in by_component.items():
            module = components[name]
            expected = unshared(module)
            wrong = sorted(expected.keys() ^ set(keys)) or [
                key for key in keys if file.get_slice(f"{name}.{key}").get_shape() != list(expected[key].shape)
            ]
            if wrong:
                raise ValueError(f"{folder}: weights of {name} do not fit this model, first: {wrong[:5]}")
            own = {key: part_of(file.get_slice(f"{name}.{key}"), expected[key]) for key in keys}
            module.load_state_dict(own, strict=False)  # tied copies, left out of the file, are the only keys it lacks
            module.source = None


def _check_components(folder: Path, model: nn.Module, found: set[str]) -> None:
    homeless = {n for n, m in own_components(model).items() if getattr(m, "source", None) is None and m.state_dict()}
    missing, unknown = homeless - found, found - model.components().keys()
    if missing or unknown:
        raise ValueError(
            f"{folder}: components missing {sorted(missing)}, unknown {sorted(unknown)}; another model's checkpoint?"
        )


def load_state(folder: Path) -> dict:
    return torch.load(_whole(folder, FILES[1]), map_location="cpu", weights_only=True)


def check_frozen(folder: Path, model: nn.Module) -> None:
    """Raise ``ValueError`` if frozen weights are not those that the checkpoint was made with."""
    own, there = frozen_fingerprints(model), read_meta(folder)["frozen"]
    different = [
        f"{name}: {there[name]['source']} ({there[name]['fingerprint']}), "
        f"here {own[name]['source']} ({own[name]['fingerprint']})"
        for name in own
        if name in there and own[name]["fingerprint"] != there[name]["fingerprint"]
    ]
    if different:
        raise ValueError(f"{folder} was made with other frozen weights of {'; '.join(different)}")


def _flush(file: Path) -> None:
    with open(file, "rb+") as stream:
        os.fsync(stream.fileno())
