"""Checks for ``arch`` in a config: a transformers configuration, written out."""

import inspect
import re
import sys
from collections.abc import Callable

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
)

from asvr.base.text import nearest, short

OF_CONFIG = re.compile(r"""config(?:\.|, ["'])([a-z]\w*)""")  # config.head_dim, getattr(config, "head_dim", ...)
OF_KEYWORDS = re.compile(r"""kwargs\.pop\(["']([a-z]\w*)""")  # kwargs.pop("global_head_dim", ...)


GROUPS = ("num_attention_heads", "num_key_value_heads")
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    *GROUPS,
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "image_size",
    "patch_size",
    "num_channels",
)


def check_arch(
    key: str, arch: dict, wrong: Callable[[PretrainedConfig], str | None] = lambda config: None
) -> list[str]:
    """The problems of an ``arch``. transformers itself accepts any field silently, even a misspelt one.

    wrong: `causal_problem` or `tower_problem`.
    """
    if "model_type" not in arch:
        return [f"{key}.model_type is missing: expected a model type of transformers, such as 'llama'"]
    model_type = arch["model_type"]
    if model_type not in CONFIG_MAPPING:
        return [
            f"{key}.model_type={short(model_type)}: unknown to transformers; "
            + nearest(model_type, CONFIG_MAPPING.keys())
        ]
    default = CONFIG_MAPPING[model_type]()
    if problems := _sizes(key, arch, default):
        return problems
    config, refused = _configuration(arch)
    if (problem := wrong(config or default)) is not None:
        return [f"{key}.model_type={model_type!r} is {problem}"]
    known = default.to_dict().keys() | default.attribute_map.keys()
    unknown = [name for name in arch if name not in known]
    if unknown and (unknown := [name for name in unknown if name not in _read_in_passing(type(default))]):
        return [f"{key}.{name}: {model_type} has no such field; {nearest(name, known)}" for name in unknown]
    return [f"{key}: {refused}"] if refused else _groups(key, arch, config)


def _configuration(arch: dict) -> tuple[PretrainedConfig | None, str]:
    """The configuration, or the reason in one line why transformers cannot make it."""
    try:
        return AutoConfig.for_model(**arch), ""
    except (StrictDataclassError, ValueError, TypeError, ArithmeticError) as error:
        return None, " ".join(str(error).split())


def _sizes(key: str, arch: dict, default: PretrainedConfig) -> list[str]:
    names = {own: default.attribute_map.get(own, own) for own in SIZES}
    given = [name for name in arch if name in names or name in names.values()]
    return [
        f"{key}.{name}={arch[name]!r}: expected at least 1"
        for name in given
        if isinstance(arch[name], int) and arch[name] < 1
    ]


def _groups(key: str, arch: dict, config: PretrainedConfig) -> list[str]:
    """In grouped-query attention, the key and value heads must divide the heads."""
    heads_name, groups_name = (config.attribute_map.get(name, name) for name in GROUPS)
    values = config.to_dict()
    heads, groups = values.get(heads_name), values.get(groups_name)
    if not isinstance(heads, int) or not isinstance(groups, int) or groups < 1 or heads % groups == 0:
        return []
    own = "" if {groups_name, GROUPS[1]} & arch.keys() else f" (the default of {config.model_type}, not in the config)"
    fit = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
    return [f"{key}.{groups_name}={groups}{own} does not divide {key}.{heads_name}={heads}: expected one of {fit}"]


def causal_problem(config: PretrainedConfig) -> str | None:
    """Why a configuration is not that of an LLM, with what to do; None if it is one."""
    kind, fix = config.model_type, "expected a causal LM such as llama, mistral or qwen2"
    if any(hasattr(config, part) for part in ("vision_config", "audio_config")):
        fix = "name the folder of its LLM" if hasattr(config, "text_config") else fix
        return f"a complete multimodal model (model_type {kind!r}): {fix}"
    if config.is_encoder_decoder:
        return f"an encoder-decoder (model_type {kind!r}): {fix}"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return f"not an LLM (model_type {kind!r}): {fix}"
    if width := getattr(config, "hidden_size_per_layer_input", None):
        return (
            f"an LLM with embeddings in every layer (hidden_size_per_layer_input={width}), which need a token id at "
            "each position, and visual tokens have none: expected one without them, such as gemma3_text"
        )
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", True):
        return f"an encoder (model_type {kind!r}), whose tokens also see later tokens: {fix}"
    return None


def tower_problem(config: PretrainedConfig) -> str | None:
    """Why a configuration is not that of a vision tower for images of one size; None if it is one."""
    own = type(getattr(config, "vision_config", config))()  # with the fields that all configurations of the class have
    if hasattr(own, "image_size") or hasattr(own, "num_patches"):
        return None
    return (
        f"not a vision tower (model_type {config.model_type!r}): expected one such as siglip_vision_model, "
        "clip_vision_model or dinov2, or a model that contains one"
    )


def field_of(config: PretrainedConfig, name: str):
    """A field of a configuration, or None. If it differs from layer to layer, the list of its values."""
    if name in (getattr(config, "per_layer_attributes", None) or ()):
        return [getattr(layer, name, None) for layer in config.per_layer_config]
    return getattr(config, name, None)


def _read_in_passing(config_class: type) -> set[str]:
    """Fields that a configuration class does not list, but that its model reads if they are given (``head_dim`` of
    qwen3_moe), or that it makes other fields of (``global_head_dim`` of gemma4_text)."""
    found = set(OF_KEYWORDS.findall(inspect.getsource(config_class)))
    model = next((m[config_class] for m in (MODEL_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING) if config_class in m), None)
    return found if model is None else found | set(OF_CONFIG.findall(inspect.getsource(sys.modules[model.__module__])))


def arch_bytes(arch: dict) -> int:
    """The bytes of the weights of an ``arch``, in its ``dtype``, by default float32."""
    config = AutoConfig.for_model(**arch)
    auto_class = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModel
    with torch.device("meta"):
        model = auto_class.from_config(config)
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
