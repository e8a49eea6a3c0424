"""LLMs in one GGUF file (llama.cpp's format), read by transformers: configuration, text tokenizer and weights, which
are rounded in the file and become whole numbers of the wanted dtype again.

Reading one needs the package ``gguf``.
"""

import copy
import importlib.util
from functools import lru_cache
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from asvr.base.quiet import without_warnings

SUFFIX = ".gguf"


def is_gguf(path: Path) -> bool:
    return path.suffix == SUFFIX and path.is_file()


def gguf_config(file: Path) -> PretrainedConfig:
    """The configuration that a file holds. Raises ``ValueError`` where ``gguf`` is not installed, or transformers does
    not know the architecture."""
    return copy.deepcopy(_config(file))


@lru_cache(maxsize=4)  # it takes seconds, and a run builds its models a dozen times
def _config(file: Path) -> PretrainedConfig:
    config = _read(AutoConfig, file)
    for field in ("_model_name_or_path", "quantization_config"):  # of the file, not of the architecture
        vars(config).pop(field, None)
    return config


def gguf_tokenizer(file: Path):
    """The fast tokenizer that a file holds, with the EOS and padding that the file names (transformers 5.17 takes
    SmolLM2's ``<|im_start|>`` for its EOS). Raises as `gguf_config`."""
    tokenizer, config = _read(AutoTokenizer, file), _config(file)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    if config.pad_token_id is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    return tokenizer


def _read(auto_class, file: Path):
    _require_package(file)
    try:
        with without_warnings():
            return auto_class.from_pretrained(
                str(file.parent), gguf_file=file.name, trust_remote_code=False, local_files_only=True
            )
    except Exception as error:  # of transformers and gguf, which raise anything for a file that they do not expect
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{file}: transformers cannot read this GGUF file ({said})") from error


def gguf_model(auto_class, file: Path, config: PretrainedConfig, dtype: torch.dtype):
    """``auto_class.from_pretrained`` of a file, in whole numbers: the model, and transformers' info on its keys."""
    from transformers import GgufConfig  # here: most runs need none of it

    _require_package(file)
    with without_warnings():
        model, info = auto_class.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            config=config,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    vars(model.config).pop("quantization_config", None)  # what the model no longer is
    model.hf_quantizer, model.is_quantized = None, False
    return model, info


def _require_package(file: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"{file}: reading a GGUF file needs: pip install gguf")
