"""Reading LLMs from GGUF files (llama.cpp's format) with transformers: configuration, text tokenizer and weights.

The weights are quantised in the file and are converted back to a float dtype. Reading needs the package ``gguf``.
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
    """The configuration in a file. Raises ``ValueError`` if ``gguf`` is not installed, or if transformers does not know
    the architecture."""
    return copy.deepcopy(_config(file))


@lru_cache(maxsize=4)  # it takes seconds, and a run builds its models many times
def _config(file: Path) -> PretrainedConfig:
    config = _read(AutoConfig, file)
    for field in ("_model_name_or_path", "quantization_config"):  # they describe the file, not the architecture
        vars(config).pop(field, None)
    return config


def gguf_tokenizer(file: Path):
    """The fast tokenizer in a file, with the EOS and padding tokens that the file names. Raises as `gguf_config`.

    transformers 5.17 itself takes ``<|im_start|>`` as the EOS of SmolLM2."""
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
    except Exception as error:  # for unexpected files, transformers and gguf raise errors of any kind
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{file}: transformers cannot read this GGUF file ({why})") from error


def gguf_model(auto_class, file: Path, config: PretrainedConfig, dtype: torch.dtype):
    """``auto_class.from_pretrained`` of a file, dequantised. Returns the model and transformers' loading info."""
    from transformers import GgufConfig  # imported here: most runs do not need it

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
    vars(model.config).pop("quantization_config", None)  # the model is no longer quantised
    model.hf_quantizer, model.is_quantized = None, False
    return model, info


def _require_package(file: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"{file}: reading a GGUF file needs: pip install gguf")
