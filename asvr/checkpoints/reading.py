"""Opening checkpoints of other software: one file or many, safetensors or pickled, without running their code."""

import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from asvr.models.tokenizers.folder import read_json

# What a folder's weights may be called, the first found counts.
NAMES = ("model.safetensors", "pytorch_model.bin", "consolidated.pt")
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
# Keys under which training programs put the weights, in the order of preference.
WRAPPERS = ("state_dict", "model", "ema", "module")


class Checkpoint:
    """The tensors of a checkpoint by key, read when they are asked for.

    path: what was opened. wrapper: the entry of a pickled file that held the weights, or None.
    config: the ``config.json`` beside them, or None.
    """

    def __init__(self, path: Path, readers: dict[str, Callable[[], Tensor]], shapes: dict, wrapper: str | None):
        self.path, self.wrapper, self.shapes = path, wrapper, shapes
        self._readers = readers
        file = (path if path.is_dir() else path.parent) / "config.json"
        self.config = read_json(file) if file.is_file() else None

    def keys(self):
        return self.shapes.keys()

    def __contains__(self, key: str) -> bool:
        return key in self.shapes

    def __getitem__(self, key: str) -> Tensor:
        return self._readers[key]()

    def rows(self, key: str) -> int:
        return self.shapes[key][0]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a file or a folder (also split over several files with an index).

    Raises ``ValueError``, naming the file, where it is missing, empty, cut short, no checkpoint, or a pickle that
    holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    readers, shapes, wrappers = {}, {}, set()
    for file in _files(path):
        own_readers, own_shapes, wrapper = _open(file)
        readers |= own_readers
        shapes |= own_shapes
        wrappers.add(wrapper)
    return Checkpoint(path, readers, shapes, wrappers.pop() if len(wrappers) == 1 else None)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for name in NAMES:
        index = path / f"{name}.index.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise ValueError(f"{index}: expected a `weight_map` of keys to files")
            parts = sorted({path / part for part in weight_map.values()})
            missing = [part.name for part in parts if not part.is_file()]
            if missing:
                raise ValueError(f"{index} names {len(missing)} files that are not there, first {missing[0]}")
            return parts
        if (path / name).is_file():
            return [path / name]
    if list(path.glob("global_step*")) or list(path.glob("*_model_states.pt")):
        return _deepspeed(path)
    found = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", *PICKLED))
    if len(found) == 1:
        return found
    raise ValueError(f"{path}: expected one of {', '.join(NAMES)} (or its .index.json); give one file by name")


def _deepspeed(path: Path) -> list[Path]:
    """The model's file in a folder that DeepSpeed saved (the step that ``latest`` names), which holds all weights up to
    ZeRO stage 2. Stage 3 and model parallelism scatter them over files in DeepSpeed's own order."""
    latest = path / "latest"
    steps = sorted(path.glob("global_step*"), key=lambda step: int(re.sub(r"\D", "", step.name) or 0))
    folder = path / latest.read_text().strip() if latest.is_file() else (steps[-1] if steps else path)
    found = sorted(folder.glob("*_model_states.pt"))
    if len(found) != 1 or found[0].name.startswith("zero_pp_rank"):
        script, whole = path / "zero_to_fp32.py", path / "whole"
        raise ValueError(
            f"{folder}: its weights are scattered over {len(found)} files (ZeRO stage 3 or model parallelism): put "
            f"them together with DeepSpeed's own script, `python {script} {path} {whole}`, and give {whole}"
        )
    return found


def _open(file: Path) -> tuple[dict, dict, str | None]:
    if file.stat().st_size == 0:
        raise ValueError(f"{file} is empty (0 bytes): fetch it again")
    if file.suffix == ".safetensors":
        return _open_safetensors(file)
    if file.suffix in PICKLED:
        return _open_pickled(file)
    raise ValueError(f"{file}: expected .safetensors or one of {', '.join(PICKLED)}")


def _open_safetensors(file: Path) -> tuple[dict, dict, None]:
    try:
        handle = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: damaged, cut short or no safetensors file ({error})") from error
    keys = list(handle.keys())
    shapes = {key: tuple(handle.get_slice(key).get_shape()) for key in keys}
    return {key: (lambda key=key: handle.get_tensor(key)) for key in keys}, shapes, None


def _open_pickled(file: Path) -> tuple[dict, dict, str | None]:
    if not zipfile.is_zipfile(file):
        raise ValueError(
            f"{file}: damaged, cut short or no checkpoint of torch.save with zip format (torch 1.6 or later)"
        )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{file} holds more than tensors and plain values, which could run code and is not loaded ({first}). "
            "Save its state_dict alone, best as safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise ValueError(f"{file}: damaged, cut short or no checkpoint of torch.save ({error})") from error
    wrapper = next(
        (name for name in WRAPPERS if isinstance(content, dict) and isinstance(content.get(name), dict)), None
    )
    tensors = content[wrapper] if wrapper else content
    tensors = {k: v for k, v in tensors.items() if isinstance(v, Tensor)} if isinstance(tensors, dict) else {}
    if not tensors:
        raise ValueError(f"{file}: holds no tensors by name (looked at the top and in {', '.join(WRAPPERS)})")
    return {k: (lambda v=v: v) for k, v in tensors.items()}, {k: tuple(v.shape) for k, v in tensors.items()}, wrapper
