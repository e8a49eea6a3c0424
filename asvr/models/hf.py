"""Code that the Hugging Face encoder and LLM share: reading a configuration, and strict loading of weights."""

import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from asvr.base import hub
from asvr.base.arch import causal_problem, field_of, tower_problem
from asvr.base.files import unsafe_pickle
from asvr.base.gguf import gguf_config, gguf_model, is_gguf
from asvr.base.log_once import log_once
from asvr.base.quiet import without_warnings
from asvr.models.shards import local_shard, untied_state_dict

CONFIG_FILE = "config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown: expected one of {sorted(DTYPES)}")
    return DTYPES[name]


def find_folder(name: str | None, load_weights: bool, what: str, arch: dict | None) -> Path | None:
    """Return the model's folder. None: the model is built from ``arch``.

    Raises ``MissingWeights`` if the folder is not found, but its weights or its architecture are needed.
    """
    folder = None
    if name is not None:
        folder = hub.require(name, what=what) if load_weights or arch is None else hub.resolve(name)
    if folder is None and arch is None:
        raise ValueError(f"{what}: expected a `name`, or an `arch` to build it from; neither is given")
    return folder


def read_config(folder: Path | None, arch: dict | None, name: str | None, **overrides) -> PretrainedConfig:
    """Return the architecture: the folder's config.json, or ``arch`` if there is no folder.

    If both are given, the folder's is used. A warning names every field of ``arch`` that differs from it.
    """
    given = _from_arch(arch, **overrides) if arch is not None else None
    if folder is None:
        return given
    config = _read_folder(folder)
    if given is not None:
        own = _same_kind(config, given.model_type)
        different = [k for k in arch if k != "model_type" and field_of(own, k) != field_of(given, k)]
        if different:
            listing = ", ".join(f"{k}={field_of(own, k)!r} (config: {arch[k]!r})" for k in different)
            log_once(
                logging.WARNING, "%s: the folder %s differs from `arch`; the folder is used: %s", name, folder, listing
            )
    return config


def _read_folder(folder: Path) -> PretrainedConfig:
    if is_gguf(folder):
        return gguf_config(folder)
    fields = _fields_of(folder)
    try:
        with without_warnings():
            return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers may raise anything for an unexpected field
        if "auto_map" in fields:
            raise ValueError(
                f"{folder}: its architecture is Python code in that folder, which is never run here (trust_remote_code "
                "is off): take a model whose architecture transformers has, or register a component of your own that "
                "builds it"
            ) from error
        raise ValueError(_wrong(f"{folder / CONFIG_FILE}", fields, error)) from error


def _fields_of(folder: Path) -> dict:
    file = folder / CONFIG_FILE
    if not file.is_file():
        what = "a file" if folder.is_file() else "a folder without config.json"
        raise ValueError(f"{folder}: {what}, expected the folder of a Hugging Face model (config.json and its weights)")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not a JSON file ({error}); fetch the model again") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise ValueError(f"{file}: no `model_type` in it, expected the config.json of a Hugging Face model")
    return fields


def _wrong(where: str, fields: dict, error: Exception) -> str:
    """Return a message of one line for a configuration that transformers cannot read. Its own messages are long."""
    kind = fields["model_type"]
    if kind in CONFIG_MAPPING:
        return f"{where}: not a configuration of {kind!r}: {' '.join(str(error).split())}"
    if kind.startswith("llava"):
        return (
            f"{where}: this is a whole LLaVA model (model_type {kind!r}): import it with asvr convert import, or name "
            "the folder of its LLM or of its vision tower"
        )
    return (
        f"{where}: model_type {kind!r} is unknown to transformers {transformers.__version__}: use another model, or a "
        "version of transformers that has this one"
    )


def require_causal(config: PretrainedConfig, where: str) -> None:
    """Raise ``ValueError`` if a configuration is not that of a causal LLM."""
    if (problem := causal_problem(config)) is not None:
        raise ValueError(f"LLM {where} is {problem}")


def require_tower(config: PretrainedConfig, where: str) -> None:
    """Raise ``ValueError`` if a configuration is not that of a vision tower for images of one size."""
    if (problem := tower_problem(config)) is not None:
        raise ValueError(f"vision encoder {where} is {problem}")


def build_random(auto_class, config: PretrainedConfig, dtype: torch.dtype, where: str):
    """Build a model with random weights. where: where the configuration comes from, for messages.

    Raises ``ValueError`` if transformers cannot build it. The message names the field with the unknown value."""
    try:
        return auto_class.from_config(config, dtype=dtype)
    except Exception as error:  # transformers may raise anything for an unexpected value
        kind = config.model_type
        if isinstance(error, KeyError):
            for field, value in _values(config):
                if value in error.args:
                    raise ValueError(f"{where}.{field}={value!r} is unknown to transformers' {kind}") from error
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{where}: transformers cannot build this {kind}: {said}") from error


def _values(config: PretrainedConfig) -> Iterator[tuple[str, object]]:
    """Yield the names and values of all fields, also of those in nested dicts such as ``rope_parameters``."""
    for name, value in config.to_dict().items():
        yield name, value
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", item) for inner, item in value.items())


def arch_of(config: PretrainedConfig) -> dict:
    """Return a configuration as an ``arch``, from which `read_config` makes the same configuration."""
    left_out = ("transformers_version", "architectures", "_name_or_path", "dtype", "torch_dtype")
    own = {key: value for key, value in config.to_diff_dict().items() if key not in left_out}
    return dict(own, model_type=config.model_type)


def _from_arch(arch: dict, **overrides) -> PretrainedConfig:
    arch = dict(arch, **overrides)
    if "model_type" not in arch:
        raise ValueError(f"arch needs `model_type` (such as 'llama' or 'siglip_vision_model'); given: {sorted(arch)}")
    if not isinstance(arch["model_type"], str):
        raise ValueError(f"arch.model_type={arch['model_type']!r}: expected a name such as 'llama'")
    fields = dict(arch)
    try:
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    except Exception as error:  # as above
        raise ValueError(_wrong("arch", arch, error)) from error


def _same_kind(config: PretrainedConfig, model_type: str) -> PretrainedConfig:
    vision = getattr(config, "vision_config", None)
    return vision if vision is not None and vision.model_type == model_type else config


def load_strict(
    auto_class,
    folder: Path,
    config: PretrainedConfig,
    dtype: torch.dtype,
    may_ignore: tuple[str, ...] = (),
    key_mapping: dict[str, str] | None = None,
):
    """Call ``auto_class.from_pretrained`` on the CPU, and refuse missing, unexpected or mis-shaped weights.

    may_ignore: prefixes of keys that the file may have although the model does not need them. key_mapping: patterns of
    keys in the file -> their replacement in the model.
    """
    try:
        model, info = _load(auto_class, folder, config, dtype, key_mapping)
    except pickle.UnpicklingError as error:
        raise unsafe_pickle(folder, error) from error
    except OSError as error:
        raise ValueError(f"{folder}: its weights cannot be read: {' '.join(str(error).split())}") from error
    unexpected = [k for k in info["unexpected_keys"] if not k.startswith(may_ignore)]
    problems = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(unexpected),
        "mis-shaped": sorted(str(k) for k in info["mismatched_keys"]),
    }
    problems = {kind: keys for kind, keys in problems.items() if keys}
    if problems:
        listing = "; ".join(f"{kind} {keys[:5]} ({len(keys)} in all)" for kind, keys in problems.items())
        raise ValueError(f"{folder}: the weights do not fit {type(model).__name__}: {listing}")
    return model


def _load(auto_class, folder: Path, config: PretrainedConfig, dtype: torch.dtype, key_mapping: dict | None):
    if is_gguf(folder):
        return gguf_model(auto_class, folder, config, dtype)
    with without_warnings():
        return auto_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `load_strict` refuses them with a message that names the file
            local_files_only=True,
            trust_remote_code=False,
            **({} if key_mapping is None else dict(key_mapping=key_mapping)),
        )


def build_deferred(
    auto_class, folder: Path, config: PretrainedConfig, dtype: torch.dtype, may_ignore: tuple[str, ...] = ()
):
    """Build the model on the meta device, for `materialise`.

    None: the folder has no safetensors, or their keys are not the model's own (transformers renames some). Then
    `load_strict` must read it."""
    files = _safetensors_of(folder)
    if not files:
        return None
    with torch.device("meta"):
        model = auto_class.from_config(config, dtype=dtype)
    shapes = {}
    for file in files:
        with safe_open(file, "pt") as content:
            shapes |= {key: tuple(content.get_slice(key).get_shape()) for key in content.keys()}
    own = {key: tuple(value.shape) for key, value in untied_state_dict(model).items()}
    tied = model.state_dict().keys() - own.keys()
    unexpected = [key for key in shapes if key not in own and key not in tied and not key.startswith(may_ignore)]
    return None if unexpected or any(shapes.get(key) != shape for key, shape in own.items()) else model


@torch.no_grad()
def materialise(model, folder: Path, device: torch.device) -> None:
    """Load the weights of a model of `build_deferred` on ``device``. With FSDP, a process reads only its own shards."""
    model.to_empty(device=device)
    model.tie_weights()  # to_empty() has untied them
    own = untied_state_dict(model)
    for file in _safetensors_of(folder):
        with safe_open(file, "pt") as content:
            for key in content.keys():
                if key in own:
                    own[key].copy_(local_shard(content.get_slice(key), own[key]))
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    model.initialize_weights()  # sets what no file holds, such as the frequencies of rotary embeddings


def _safetensors_of(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [
            folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        ]
    return [file for file in [folder / "model.safetensors"] if file.is_file()]
