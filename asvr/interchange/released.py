"""Import of checkpoints of the released ASVR code (github.com/AlenjandroWang/ASVR): whole models of ``asvr_llama.py``
and similar files."""

import inspect
import re

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from asvr.base.checkpoint_files import Checkpoint
from asvr.interchange.codebooks import codebook_rules, codebook_sizes, uniform_shares
from asvr.interchange.rules import Ignored, Rule, translate
from asvr.interchange.siglip import tower_arch, tower_rules
from asvr.recipe.model_file import build_described

TOWER = "model.vision_tower.vision_tower.vision_model."
TOKENIZER = "model.vision_tokenizer.vision_tower."
RQVAE = f"{TOKENIZER}rqvaesiglip."
HEAD = f"{TOKENIZER}rqtransformer_semantic."
HEAD_WIDTH = 128  # the width of an attention head: RQTransformer has embed_dim // 128 of them
HEAD_LAYERS = 3  # the number of layers of RQTransformer, which is fixed
LAYER = -2  # the layer of the tokenizer's tower, which no configuration changes
TAG = "asvr_"  # the prefix of the released model types: asvr_llama, asvr_mistral, asvr_qwen2


def model_config(checkpoint: Checkpoint, num_heads: int | None = None) -> dict:
    """The config of `VLM` for a released checkpoint.

    num_heads: of the SigLIP towers, if their size is not a published one. Sizes come from the tensors, those of the LLM
    from ``config.json``. Raises ``ValueError`` if it is missing or does not fit.
    """
    name, llm = checkpoint.setting("mm_vision_tower", str, ""), llm_arch(checkpoint)
    refuse_other_features(checkpoint)
    layers = checkpoint.numbers(re.escape(HEAD) + r"head_transformer\.(\d+)\..*")
    if layers != HEAD_LAYERS:
        raise ValueError(f"{checkpoint.path}: {layers} layers under {HEAD}, the released head has {HEAD_LAYERS}")
    classifiers = checkpoint.numbers(re.escape(HEAD) + r"heads\.(\d+)\.weight")
    width = checkpoint.rows(f"{HEAD}headnorm.weight")
    own = tower_arch(checkpoint, f"{RQVAE}siglip_model.vision_model.", name, num_heads)
    layer = checkpoint.setting("mm_vision_select_layer", int, LAYER)
    return dict(
        type="VLM",
        encoder=dict(type="HFVisionEncoder", layer=layer, arch=tower_arch(checkpoint, TOWER, name, num_heads)),
        projector=dict(type="MLPProjector", layers=2),
        llm=dict(type="HFCausalLM", arch=llm),
        reconstruction=[
            dict(
                name="semantic",
                tokenizer=dict(
                    type="SemanticTokenizer",
                    **codebook_sizes(checkpoint, f"{RQVAE}quantizer_semantic.", classifiers),
                    encoder=dict(type="HFVisionEncoder", layer=LAYER, arch=own),
                ),
                head=dict(type="ReleasedHead", width=width, layers=layers, num_heads=max(1, width // HEAD_WIDTH)),
                loss=dict(type="CodeCrossEntropy"),
                weight=1.0,
                shift=0,
            )
        ],
    )


def llm_arch(checkpoint: Checkpoint) -> dict:
    """The LLM's part of a LLaVA-like ``config.json``. Nulls are kept: ``sliding_window: null`` is not the default.

    Raises ``ValueError`` if it does not describe a language model, or has impossible sizes.
    """
    named = checkpoint.setting("model_type", str, "")
    model_type = named.removeprefix(TAG).removeprefix("llava_")
    model_type = {"llava": "llama"}.get(model_type, model_type)
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"{checkpoint.path}: config.json has model_type {named!r}: no language model of transformers")
    known = inspect.signature(CONFIG_MAPPING[model_type].__init__).parameters.keys() | {"rope_theta", "rope_scaling"}
    arch = {key: value for key, value in checkpoint.config.items() if key in known}
    arch |= dict(model_type=model_type, vocab_size=checkpoint.rows("lm_head.weight"))
    try:
        AutoConfig.for_model(**arch)
    except (StrictDataclassError, ValueError, TypeError, KeyError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{checkpoint.path}: config.json describes no {model_type}: {reason}") from error
    return arch


def refuse_other_features(checkpoint: Checkpoint) -> None:
    """Raise ``ValueError`` if the model was trained on other features than those of the patches."""
    kept = checkpoint.setting("mm_vision_select_feature", str, "patch")
    if kept != "patch":
        raise ValueError(f"{checkpoint.path}: config.json has mm_vision_select_feature={kept!r}, expected 'patch'")


def rules(model, shared: bool) -> list:
    """Rules for every key of a released checkpoint. model: the `VLM` of `model_config`."""
    semantic = model.tokenizers["semantic"]
    unused = re.escape(TOKENIZER)
    head = re.escape(HEAD)
    layer = rf"{head}head_transformer\.(\d+)\."
    to_layer, depth = r"heads.semantic.layers.\1.", semantic.depth
    return [
        *tower_rules(TOWER, "encoder.model.", model.encoder.model),
        *tower_rules(
            f"{RQVAE}siglip_model.vision_model.", "tokenizers.semantic.own_encoder.model.", semantic.encoder.model
        ),
        *codebook_rules(f"{RQVAE}quantizer_semantic.", "tokenizers.semantic.quantizer.", shared),
        Ignored(rf"{unused}rqvaesiglip\.siglip_model\.(text_model\..*|logit_\w+)", "SigLIP's text side"),
        Ignored(
            rf"{unused}rqvaesiglip\.(decoder|post_quant_conv|postquant_visual)\..*",
            "turns appearance codes into pixels",
        ),
        Ignored(
            rf"{unused}rqvaesiglip\.(prequant_visual|quantizer)\..*",
            "the appearance codes, which the code computes and drops",
        ),
        Ignored(rf"{unused}rqtransformer_visual\..*", "the head of the appearance codes, whose loss is commented out"),
        Rule(rf"{head}in_mlp_1\.(.*)", r"heads.semantic.code_input.\1"),
        Rule(rf"{layer}layernorm([12])\.(.*)", rf"{to_layer}norm\2.\3"),
        Rule(rf"{layer}self_attention\.in_proj_(weight|bias)", rf"{to_layer}qkv.\2"),
        Rule(rf"{layer}self_attention\.out_proj\.(.*)", rf"{to_layer}out.\2"),
        Rule(rf"{layer}linear1\.weight", rf"{to_layer}feed_forward.up_DFW", lambda w: by_depth(w, depth)),
        Rule(rf"{layer}linear2\.weight", rf"{to_layer}feed_forward.down_DWF", lambda w: by_depth(w, depth)),
        Rule(rf"{layer}linear([12])\.bias", rf"{to_layer}unused_bias\2"),
        Rule(rf"{head}headnorm\.(.*)", r"heads.semantic.norm.\1"),
        Rule(rf"{head}heads\.(.*)", r"heads.semantic.classifiers.\1"),
        Rule(r"projector\.(.*)", r"heads.semantic.input.\1"),
        Rule(r"model\.mm_projector\.(.*)", r"projector.mlp.\1"),
        Ignored(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "computed from the configuration"),
        Rule(r"((?:model\.(?:embed_tokens|layers|norm)|lm_head)\..*)", r"llm.model.\1"),
    ]


def by_depth(weight: Tensor, depth: int) -> Tensor:
    """Reshape a weight of the released head: (out, depth * in) -> (depth, out, in)."""
    return weight.unflatten(1, (depth, -1)).transpose(0, 1).contiguous()


def released_tensors(checkpoint: Checkpoint, model: torch.nn.Module) -> dict[str, Tensor]:
    """The state dict of a `VLM` with the components of `model_config`, from a released checkpoint.

    Raises ``ValueError`` with all keys that do not fit.
    """
    expected = model.state_dict()
    shared = model.tokenizers["semantic"].quantizer.shared
    tensors = translate(checkpoint, rules(model, shared), expected, made=[r".*\.share"])
    return tensors | uniform_shares(expected, "tokenizers.semantic.quantizer.")


def plan(checkpoint: Checkpoint, num_heads: int | None = None) -> tuple[dict, torch.nn.Module, list]:
    """The config of a released checkpoint (`model_config`), its `VLM` without weights, and the rules for its keys."""
    config = model_config(checkpoint, num_heads)
    model = build_described(config, checkpoint.path)
    return config, model, rules(model, model.tokenizers["semantic"].quantizer.shared)


def import_released(checkpoint: Checkpoint, num_heads: int | None = None) -> tuple[dict, torch.nn.Module]:
    """The config and the `VLM` of a released checkpoint; see `model_config` and `released_tensors`."""
    config, model, _ = plan(checkpoint, num_heads)
    model.load_state_dict(released_tensors(checkpoint, model))
    return config, model.eval()
