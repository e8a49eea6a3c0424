"""Checks whether transformers' LLaVA classes can express a model of this library, and if not, why.

`LlavaForConditionalGeneration` gives every image the same number of tokens. `LlavaNextForConditionalGeneration` reads
an image as an overview and tiles, as the layout `AnyRes` does.
"""

from asvr.data.layouts import AnyRes, WholeImage
from asvr.models.encoders.huggingface import HFVisionEncoder
from asvr.models.llms import HFCausalLM
from asvr.models.projectors import MLPProjector
from asvr.pretrained import Pretrained

# The vision towers, and which of their features LLaVA keeps: all ("full"), or all but the CLS token ("default").
TOWERS = {"siglip_vision_model": "full", "clip_vision_model": "default"}
LLMS = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "smollm3", "olmo2")


def is_tiled(model) -> bool:
    """Whether the model is exported as LLaVA-NeXT."""
    return type(model.layout) is AnyRes


def refuse_inexpressible(source: Pretrained) -> None:
    """Raise ``ValueError`` with all reasons why neither LLaVA nor LLaVA-NeXT computes what this model computes."""
    model = source.model
    reasons = [*_of_encoder(model.encoder), *_of_projector(model.projector), *_of_llm(model.llm)]
    reasons += _of_layout(model.layout)
    if model.visual_attention != "causal":
        reasons.append(
            "its visual tokens see each other (visual_attention='bidirectional'); LLaVA's attention is causal"
        )
    if source.text_tokenizer is None:
        reasons.append("it has no text tokenizer")
    if reasons:
        raise ValueError(
            f"this model cannot be a LLaVA folder: {'; '.join(reasons)}. Export it in this library's own format, which "
            "asvr.load reads: --format asvr"
        )


def _of_encoder(encoder) -> list[str]:
    if not isinstance(encoder, HFVisionEncoder) or encoder.model.config.model_type not in TOWERS:
        return [f"its encoder is {_kind(encoder)}; LLaVA folders take {', '.join(TOWERS)}"]
    if isinstance(encoder.layer, list):
        return [f"its encoder gives the features of several layers ({encoder.layer})"]
    if encoder.layer == 0:
        return ["its encoder gives the patch embeddings (layer 0), in front of the first block"]
    return []


def _of_projector(projector) -> list[str]:
    parts = [type(m).__name__ for m in projector.mlp] if isinstance(projector, MLPProjector) else []
    if parts != ["Linear", "GELU", "Linear"]:
        ours = " of ".join([_kind(projector), *([", ".join(parts)] if parts else [])])
        return [f"its projector is {ours}; LLaVA has MLPProjector of Linear, GELU, Linear"]
    return ["its projector adds positions (positions=True)"] if projector.place is not None else []


def _of_llm(llm) -> list[str]:
    if not isinstance(llm, HFCausalLM) or llm.model.config.model_type not in LLMS:
        return [f"its LLM is {_kind(llm)}; this export is tested with {', '.join(LLMS)}"]
    if llm.logit_changes:
        return [f"its LLM changes its logits ({llm.logit_changes}), which LLaVA leaves out"]
    return []


def _of_layout(layout) -> list[str]:
    if type(layout) is AnyRes:
        off = [name for name in ("overview", "unpad", "newline") if not getattr(layout, name)]
        fields = ", ".join(f"{name}=False" for name in off)
        return [f"its layout has {fields}; LLaVA-NeXT always has an overview, unpadding and newlines"] if off else []
    if type(layout) is not WholeImage or layout.fixed is None:
        return [
            f"its images are laid out by {type(layout).__name__} with a number of tokens of their own; LLaVA gives "
            "every image the same number, and LLaVA-NeXT has the tiles of AnyRes"
        ]
    return []


def _kind(part) -> str:
    config = getattr(getattr(part, "model", None), "config", None)
    return type(part).__name__ + (f" ({config.model_type})" if hasattr(config, "model_type") else "")
