"""Reading checkpoints of other software: one file or many, safetensors or pickle, without running their code."""

import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from asvr.base.files import unsafe_pickle
from asvr.base.weight_files import read_json

# Names of the weights in a folder; the first one found is read.
NAMES = ("model.safetensors", "pytorch_model.bin", "consolidated.pt")
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
# Keys of the weights in files of training programs, in order of preference: LlamaGen reads ``ema`` first.
WRAPPERS = ("state_dict", "ema", "model", "module")
# safetensors' name -> torch's name of a dtype.
SAFETENSORS = dict(F64="float64", F32="float32", F16="float16", BF16="bfloat16", I64="int64", I32="int32", U8="uint8")


class Checkpoint:
    """The tensors of a checkpoint by key. Each tensor is read when it is used.

    path: the file or folder. wrapper: the entry of a pickled file that has the weights, or None. dtypes: of the
    tensors. left_out: the entries beside the tensors that are not tensors. config: the ``config.json`` beside the
    weights, or None.
    """

    def __init__(
        self,
        path: Path,
        readers: dict[str, Callable[[], Tensor]],
        shapes: dict,
        wrapper: str | None,
        dtypes: set[str],
        left_out: list[str],
    ):
        self.path, self.wrapper, self.shapes, self.dtypes, self.left_out = path, wrapper, shapes, dtypes, left_out
        self._readers = readers
        file = (path if path.is_dir() else path.parent) / "config.json"
        self.config = read_json(file) if file.is_file() else None

    def keys(self):
        return self.shapes.keys()

    def __contains__(self, key: str) -> bool:
        return key in self.shapes

    def __getitem__(self, key: str) -> Tensor:
        return self._readers[key]()

    def has(self, prefix: str) -> bool:
        """Whether any key begins with ``prefix``."""
        return any(key.startswith(prefix) for key in self.shapes)

    def rows(self, key: str) -> int:
        """The first size of a tensor. Raises ``ValueError`` if it is missing or a scalar."""
        return self.shape(key)[0]

    def shape(self, key: str, dims: int | None = None) -> tuple[int, ...]:
        """The shape of a tensor. Raises ``ValueError`` if it is missing, or does not have ``dims`` dimensions (None: at
        least one)."""
        if key not in self.shapes:
            raise ValueError(f"{self.path} does not fit: missing: {key}")
        found = self.shapes[key]
        if not found or dims not in (None, len(found)):
            raise ValueError(f"{self.path} does not fit: {key} has shape {found}, expected {dims or 'some'} dimensions")
        return found

    def numbers(self, pattern: str) -> int:
        """The number of numbered parts, such as layers. pattern: matches a full key; its first group is the number.

        Raises ``ValueError`` if there is none, or if a number is missing between others.
        """
        found = sorted({int(m[1]) for key in self.shapes if (m := re.fullmatch(pattern, key))})
        if found != list(range(len(found))) or not found:
            gaps = sorted(set(range(max(found, default=0) + 1)) - set(found))
            raise ValueError(f"{self.path} does not fit: missing: number {gaps[0]} of {_plain(pattern)}")
        return len(found)

    def setting(self, key: str, kind: type | tuple[type, ...], default=None):
        """A value of ``config.json``; ``default`` if it is absent or null. Raises ``ValueError`` if it is not of
        ``kind``, or if there is no ``config.json``."""
        if self.config is None:
            raise ValueError(f"{self.path}: config.json is missing beside the weights: it has the sizes of the LLM")
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, kind):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise ValueError(f"{self.path}: config.json has {key}={value!r}, expected {names}")
        return value


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a file or a folder. The weights may be split over several files with an index.

    Raises ``ValueError``, with the name of the file, if it is missing, empty, incomplete, not a checkpoint, or a pickle
    with more than tensors and plain values.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    files = [_open(file) for file in _files(path)]
    wrappers = {file.wrapper for file in files}
    return Checkpoint(
        path,
        readers={key: reader for file in files for key, reader in file.readers.items()},
        shapes={key: shape for file in files for key, shape in file.shapes.items()},
        wrapper=wrappers.pop() if len(wrappers) == 1 else None,
        dtypes=set().union(*(file.dtypes for file in files)),
        left_out=[name for file in files for name in file.left_out],
    )


def _plain(pattern: str) -> str:
    """A readable form of a pattern: ``encoder.layers.N``."""
    return pattern.replace(r"(\d+)", "N").replace("\\", "").replace(".*", "*")


@dataclass
class _File:
    """One file of a checkpoint; see `Checkpoint`."""

    readers: dict[str, Callable[[], Tensor]]
    shapes: dict[str, tuple[int, ...]]
    dtypes: set[str]
    wrapper: str | None = None
    left_out: list[str] = field(default_factory=list)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for name in NAMES:
        index = path / f"{name}.index.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise ValueError(f"{index}: expected a `weight_map` of keys to files")
            foreign = [p for p in weight_map.values() if not isinstance(p, str) or Path(p).name != p]
            if foreign:
                raise ValueError(f"{index}: `weight_map` names {foreign[0]!r}: expected files of this folder")
            parts = sorted({path / part for part in weight_map.values()})
            missing = [part.name for part in parts if not part.is_file()]
            if missing:
                raise ValueError(f"{index} names {len(missing)} files that are missing, first {missing[0]}: fetch them")
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
    """The model's file in a folder that DeepSpeed saved, for the step that ``latest`` names.

    Up to ZeRO stage 2 the file has all weights. Stage 3 and model parallelism split them over several files, in
    DeepSpeed's own order; that is refused."""
    latest = path / "latest"
    steps = sorted(path.glob("global_step*"), key=lambda step: int(re.sub(r"\D", "", step.name) or 0))
    folder = path / latest.read_text(encoding="utf-8").strip() if latest.is_file() else (steps[-1] if steps else path)
    found = sorted(folder.glob("*_model_states.pt"))
    if len(found) != 1 or found[0].name.startswith("zero_pp_rank"):
        script, whole = path / "zero_to_fp32.py", path / "whole"
        raise ValueError(
            f"{folder}: its weights are scattered over {len(found)} files (ZeRO stage 3 or model parallelism): join "
            f"them with DeepSpeed's own script, `python {script} {path} {whole}`, and give {whole}"
        )
    return found


def _open(file: Path) -> _File:
    if file.stat().st_size == 0:
        raise ValueError(f"{file} is empty (0 bytes): fetch it again")
    if file.suffix == ".safetensors":
        return _open_safetensors(file)
    if file.suffix in PICKLED:
        return _open_pickled(file)
    raise ValueError(f"{file}: expected .safetensors or one of {', '.join(PICKLED)}")


def _open_safetensors(file: Path) -> _File:
    try:
        handle = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: damaged, cut short or no safetensors file ({error})") from error
    slices = {key: handle.get_slice(key) for key in handle.keys()}
    return _File(
        readers={key: (lambda key=key: handle.get_tensor(key)) for key in slices},
        shapes={key: tuple(one.get_shape()) for key, one in slices.items()},
        dtypes={SAFETENSORS.get(one.get_dtype(), one.get_dtype()) for one in slices.values()},
    )


def _open_pickled(file: Path) -> _File:
    if not zipfile.is_zipfile(file):
        raise ValueError(
            f"{file}: damaged, cut short or no checkpoint of torch.save in zip format (torch 1.6 or later)"
        )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise unsafe_pickle(file, error) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise ValueError(f"{file}: damaged, cut short or no checkpoint of torch.save ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {type(content).__name__}: expected tensors by name")
    wrapper = next((name for name in WRAPPERS if _tensors(content.get(name))), None)
    whole = content[wrapper] if wrapper else content
    tensors = _tensors(whole)
    if not tensors:
        raise ValueError(f"{file} holds no tensors by name, neither at the top nor in {', '.join(WRAPPERS)}")
    return _File(
        readers={key: (lambda value=value: value) for key, value in tensors.items()},
        shapes={key: tuple(value.shape) for key, value in tensors.items()},
        dtypes={str(value.dtype).removeprefix("torch.") for value in tensors.values()},
        wrapper=wrapper,
        left_out=[str(key) for key in whole if key not in tensors],
    )


def _tensors(content) -> dict[str, Tensor]:
    items = content.items() if isinstance(content, dict) else ()
    return {key: value for key, value in items if isinstance(key, str) and isinstance(value, Tensor)}
