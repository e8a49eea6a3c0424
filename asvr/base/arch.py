"""``arch`` in a config: a transformers configuration, spelled out."""

import inspect
import re
import sys

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
)

from asvr.base.text import nearest

OF_CONFIG = re.compile(r"""config(?:\.|, ["'])([a-z]\w*)""")  # config.head_dim, getattr(config, "head_dim", ...)


def check_arch(key: str, arch: dict) -> list[str]:
    """The problems of an ``arch``. transformers itself takes any field, misspelt ones too, without a word."""
    if "model_type" not in arch:
        return [f"{key}.model_type is missing: expected a name of transformers, such as 'llama'"]
    model_type = arch["model_type"]
    if model_type not in CONFIG_MAPPING:
        return [
            f"{key}.model_type={model_type!r}: unknown to transformers; {nearest(model_type, CONFIG_MAPPING.keys())}"
        ]
    default = CONFIG_MAPPING[model_type]()
    known = default.to_dict().keys() | default.attribute_map.keys()
    unknown = [name for name in arch if name not in known]
    if unknown and (unknown := [name for name in unknown if name not in _read_in_passing(type(default))]):
        return [f"{key}.{name}: {model_type} has no such field; {nearest(name, known)}" for name in unknown]
    try:
        AutoConfig.for_model(**arch)
    except (StrictDataclassError, ValueError, TypeError, ArithmeticError) as error:
        return [f"{key}: {' '.join(str(error).split())}"]
    return []


def _read_in_passing(config_class: type) -> set[str]:
    """Fields that a configuration does not list, and that its model reads where they are given (qwen3_moe's
    ``head_dim``)."""
    model = next((m[config_class] for m in (MODEL_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING) if config_class in m), None)
    return set() if model is None else set(OF_CONFIG.findall(inspect.getsource(sys.modules[model.__module__])))


def arch_bytes(arch: dict) -> int:
    """Size of the weights of an ``arch``, in the ``dtype`` that it names, float32 if none."""
    config = AutoConfig.for_model(**arch)
    auto_class = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModel
    with torch.device("meta"):
        model = auto_class.from_config(config)
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
