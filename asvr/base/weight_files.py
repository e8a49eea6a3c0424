"""Folders of weights: written atomically, read strictly."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from asvr.base import compat
from asvr.base.files import replaced_folder


def write_folder(folder: str | Path, *, weights: tuple[str, Mapping[str, Tensor]], texts: Mapping[str, dict]) -> Path:
    """Write one safetensors file (name, tensors) and JSON files (name -> content) to ``folder``.

    An existing folder is replaced, so a folder with other files is refused.
    """
    folder = Path(folder).absolute()
    refuse_other_files(folder, {weights[0], *texts})
    with replaced_folder(folder) as partial:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights[1].items()}
        save_file(tensors, partial / weights[0], metadata={"format": "pt"})
        compat.give_mode_of_new_files(partial / weights[0])
        for name, content in texts.items():
            (partial / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder


def refuse_other_files(folder: Path, names: set[str]) -> None:
    """Raise ValueError if ``folder``, which will be replaced, has files with other names."""
    if folder.exists():
        inside = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
        foreign = inside - names
        if foreign:
            raise ValueError(f"{folder}: has other files ({sorted(foreign)[:3]}): give a new or empty folder")


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises ValueError, with the name of the file, if it is missing or has something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def load_weights(module: nn.Module, path: Path, prefix: str = "") -> None:
    """Load a safetensors file. It must have exactly the module's tensors, with their shapes.

    prefix: use only tensors whose names begin with it, and remove it. If the file is split, ``<path>.index.json`` lists
    the parts, as Hugging Face writes them. Raises ValueError with the file and the differences.
    """
    index = path.with_name(path.name + ".index.json")
    if index.is_file() and not path.is_file():
        parts = sorted({file for key, file in read_json(index)["weight_map"].items() if key.startswith(prefix)})
        paths = [path.with_name(part) for part in parts]
    else:
        paths = [path]
    weights = {}
    for part in paths:
        weights |= _read(part, prefix)
    own = module.state_dict()
    problems = {
        "missing": sorted(own.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - own.keys()),
        "of another shape": [
            f"{k} {tuple(weights[k].shape)}, expected {tuple(own[k].shape)}"
            for k in sorted(own.keys() & weights.keys())
            if weights[k].shape != own[k].shape
        ],
    }
    found = "; ".join(f"{kind}: {keys[:3]} ({len(keys)} in all)" for kind, keys in problems.items() if keys)
    if found:
        raise ValueError(f"{path}: does not have the weights of this tokenizer: {found}")
    module.load_state_dict(weights)


def _read(path: Path, prefix: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {k.removeprefix(prefix): file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: missing, damaged or cut short ({error}); fetch or make it again") from error
