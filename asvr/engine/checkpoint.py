"""Writes and reads checkpoints: folders with the weights that no other file has, and the state to go on from.

``model.safetensors``  weights that were trained or initialised in the run, see `asvr.engine.saved`
``state.pt``           optimiser, schedule, random states (tensors and plain values only)
``checkpoint.json``    step, stage, configuration, fingerprints of the frozen weights, SHA-256 of the other files

If weights are sharded over processes, ``weights/`` replaces the first file, and ``optimizer/`` replaces the optimiser's
part of the second, see `asvr.engine.sharded`. A checkpoint of either kind can be read into a model of either kind.
"""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

import torch
from mmengine import dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from asvr.base import compat
from asvr.base.files import sha256_of
from asvr.engine import sharded
from asvr.engine.checkpoint_fit import check_fit, of_targets
from asvr.engine.checkpoint_folder import (
    PREFIX,
    abandon,
    begin,
    clean,
    finish,
    flush,
    newest,
    prune,
    read_meta,
    require_room,
    require_whole,
    set_aside_damaged,
    set_aside_later,
    with_reason,
)
from asvr.engine.saved import frozen_fingerprints, own_components, saved_tensors
from asvr.models.component import apart_of, fingerprint_in, fingerprint_of, source_of
from asvr.models.hf import DTYPES
from asvr.models.shards import local_shard, untied_state_dict

__all__ = [  # from the modules beneath, for users of this module
    "PREFIX",
    "clean",
    "frozen_fingerprints",
    "newest",
    "own_components",
    "prune",
    "read_meta",
    "set_aside_damaged",
    "set_aside_later",
]
WEIGHTS, STATE = "model.safetensors", "state.pt"


# Writing --------------------------------------------------------------------------------------------------


def collect(model: nn.Module, optimizer: torch.optim.Optimizer | None, state: dict) -> dict:
    """Collect the content of a checkpoint, without a copy: ``weights``, ``state``, and the optimiser's ``tensors`` if
    they are sharded."""
    weights = {
        f"{name}.{key}": value
        for name, module in own_components(model).items()
        for key, value in saved_tensors(module).items()
    }
    if optimizer is None:
        return dict(weights=weights, tensors={}, state=state)
    if not sharded.is_sharded(weights):
        return dict(weights=weights, tensors={}, state=dict(state, optimizer=optimizer.state_dict()))
    tensors, settings = sharded.optimizer_state(model, optimizer)
    return dict(weights=weights, tensors=tensors, state=dict(state, optimizer=settings))


def save(folder: Path, *, model: nn.Module, state: dict, meta: dict, optimizer=None) -> None:
    """Write a checkpoint now, completely or not at all. Every process calls it.

    meta: the content of ``checkpoint.json`` without the hashes. Raises ``ValueError`` if the disk has no room."""
    write(folder, collect(model, optimizer, state), meta)


def writes_here(content: dict) -> bool:
    """Whether this process writes a part of the content that `collect` returned."""
    return dist.is_main_process() or sharded.is_sharded(content["weights"])


def write(folder: Path, content: dict, meta: dict, group=None) -> None:
    """Write the content that `collect` returned. group: the process group; None: the default one."""
    if sharded.is_sharded(content["weights"]):
        _write_sharded(folder, content, meta, group)
    elif dist.is_main_process():
        _write_whole(folder, content, meta)


def _write_whole(folder: Path, content: dict, meta: dict) -> None:
    needed = sharded.local_bytes(content["weights"]) + _bytes_in(content["state"])
    try:
        partial = begin(folder)
        require_room(folder, needed)
        save_file({key: value.cpu().contiguous() for key, value in content["weights"].items()}, partial / WEIGHTS)
        compat.give_mode_of_new_files(partial / WEIGHTS)
        with open(partial / STATE, "wb") as stream:  # an error of torch's own file would not give the reason
            torch.save(content["state"], stream)
        _require_readable(partial / STATE)
        finish(folder, meta, {name: _hash(partial / name) for name in (WEIGHTS, STATE)})
    except Exception as error:
        abandon(folder)
        raise with_reason(folder, needed, error) from error


def _write_sharded(folder: Path, content: dict, meta: dict, group) -> None:
    """Write a sharded checkpoint. If one process fails, all of them raise an error.

    Torch's own functions are used, since they raise if the group has ended. MMEngine's would go on as if there were one
    process."""
    own = sharded.local_bytes(content["weights"] | content["tensors"])
    needed, first = sum(_gather(own, group)), torch.distributed.get_rank(group) == 0
    partial = folder.with_name(f".{folder.name}.partial")

    def start() -> None:
        if first:
            begin(folder)
            require_room(folder, needed)

    def shards() -> tuple[dict, dict]:
        weights = sharded.write(partial / sharded.WEIGHTS, content["weights"], group)
        files = list(weights)
        if content["tensors"]:
            files += sharded.write(partial / sharded.OPTIMIZER, content["tensors"], group)
        if first:
            with open(partial / STATE, "wb") as stream:
                torch.save(content["state"], stream)
            _require_readable(partial / STATE)
            files.append(partial / STATE)
        hashes = {str(file.relative_to(partial)): _hash(file) for file in files}
        return hashes, {file.name: sharded.data_sha256(file) for file in weights}

    try:
        _together(start, group)
        hashes, data = (_merged(found) for found in zip(*_together(shards, group), strict=True))
        digest = hashlib.sha256(json.dumps(data).encode()).hexdigest()
        _together(lambda: finish(folder, dict(meta, weights=digest), hashes) if first else None, group)
    except Exception as error:
        if first:
            abandon(folder)
        raise with_reason(folder, needed, error) from error


def _require_readable(file: Path) -> None:
    """Raise ``ValueError`` for a state that `load_state` could not read. Only names of classes are read here."""
    if unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(file):
        raise ValueError(
            f"the state of the optimiser or of a hook holds {', '.join(sorted(unsafe))}, which could not be read back: "
            "keep plain tensors and values, or register the class with torch.serialization.add_safe_globals"
        )


def _together(work, group) -> list:
    """Run ``work`` in all processes and return all results. If some fail, raise the error of the first one."""
    result, error = None, None
    try:
        result = work()
    except Exception as own:
        error = own
    words = _gather(None if error is None else f"{type(error).__name__}: {error}", group)
    if error is not None:
        raise error
    if any(words):
        rank = next(rank for rank, found in enumerate(words) if found)
        raise ValueError(f"process {rank}: {words[rank]}")
    return _gather(result, group)


def _gather(value, group) -> list:
    found = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(found, value, group)
    return found


def _merged(found: list[dict]) -> dict:
    return {name: value for one in found for name, value in sorted(one.items())}


def _hash(file: Path) -> str:
    flush(file)
    return sha256_of(file)


def _bytes_in(value) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(_bytes_in(item) for item in items)


# Reading --------------------------------------------------------------------------------------------------


def weights_digest(folder: Path) -> str:
    """The SHA-256 of a checkpoint's weights, from ``checkpoint.json``."""
    meta = read_meta(folder)
    return meta["sha256"][WEIGHTS] if WEIGHTS in meta["sha256"] else meta["weights"]


def load_weights(folder: Path, model: nn.Module, *, start: bool = False) -> list[str]:
    """Load a checkpoint's weights, strictly. Returns the names of new targets.

    Weights that are not in the checkpoint must have files of their own, such as an LLM that the stage before froze. A
    component that this model freezes may be in the checkpoint, because an earlier stage trained it. It then counts as
    initialised in the run, so that later checkpoints hold it too. The same is true for single tensors of a component.
    start: the checkpoint is of another stage, which may have other targets; new targets keep their weights."""
    whole = WEIGHTS in read_meta(folder)["sha256"]
    require_whole(folder, [WEIGHTS] if whole else _files(folder, sharded.WEIGHTS))
    shapes = _shapes(folder / WEIGHTS) if whole else sharded.shapes(folder / sharded.WEIGHTS)
    found, new = check_fit(folder, model, shapes, start=start)
    parts = {name: model.components()[name] for name in found}
    own = {
        f"{n}.{k}": value
        for n, module in parts.items()
        for k, value in untied_state_dict(module).items()
        if k in found[n]
    }
    if whole:
        with torch.no_grad(), safe_open(folder / WEIGHTS, framework="pt") as file:
            for key, value in own.items():
                value.copy_(local_shard(file.get_slice(key), value))
    else:
        sharded.read(folder / sharded.WEIGHTS, own)
    for name, module in parts.items():
        keys = untied_state_dict(module).keys()
        if found[name] == {key for key in keys if not of_targets(name, key, new)}:
            module.source, module.apart = None, frozenset()
        else:
            module.apart = apart_of(module) | found[name]
    return new


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Load the optimiser's state, and return the other states. Every process calls it."""
    whole = WEIGHTS in read_meta(folder)["sha256"]
    files = [STATE] if whole else [STATE, *_files(folder, sharded.OPTIMIZER)]
    require_whole(folder, files)
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    own = state.pop("optimizer")
    if whole:
        sharded.load_whole_optimizer(own, optimizer)
    else:
        sharded.read_optimizer(folder / sharded.OPTIMIZER, own, model, optimizer)
    return state


def check_frozen(folder: Path, model: nn.Module) -> None:
    """Raise ``ValueError`` if the model's frozen weights are not those that a checkpoint was made with.

    These are the weights that the checkpoint itself does not hold. ``model`` may train them now, so call this before
    its weights are replaced. Every process calls it."""
    meta, parts, different = read_meta(folder), model.components(), []
    for name, there in meta["frozen"].items():
        if name not in parts:
            continue
        saved = there.get("saved", ())
        here = fingerprint_in(parts[name], None, saved) if saved else fingerprint_of(parts[name])
        same = here in (there["fingerprint"], *there.get("casts", ()))
        if not same and not _same_in_another_dtype(parts[name], there["fingerprint"], saved):
            found = f"{there['source']} ({there['fingerprint']}), now {source_of(parts[name])} ({here})"
            different.append(f"{name}: {found}")
    if different:
        raise ValueError(
            f"{folder} was made with other frozen weights of {'; '.join(different)}. Name the weights it was made "
            "with, use another --work-dir, or train from the start with --resume never"
        )


def _same_in_another_dtype(part: nn.Module, fingerprint: str, saved: Collection[str]) -> bool:
    """Whether a part has the saved weights in another dtype. A stage may use another dtype than the stage before."""
    own = {p.dtype for p in part.parameters()}
    return any(fingerprint_in(part, dtype, saved) == fingerprint for dtype in DTYPES.values() if {dtype} != own)


def _shapes(file: Path) -> dict[str, torch.Size]:
    with safe_open(file, framework="pt") as stream:
        return {key: torch.Size(stream.get_slice(key).get_shape()) for key in stream.keys()}


def _files(folder: Path, part: str) -> list[str]:
    return sorted(name for name in read_meta(folder)["sha256"] if name.startswith(f"{part}/"))
