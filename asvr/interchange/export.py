"""A trained model as a plain Hugging Face folder: ``LlavaForConditionalGeneration`` and its processor.

The reconstruction heads and visual tokenizers are not needed to answer and stay behind.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from asvr.base.files import new_folder, require_new
from asvr.data.conversation import ROLES, encode_segments, segments_of
from asvr.data.layouts import WholeImage
from asvr.data.templates import IMAGE_MARK, build_template
from asvr.interchange.chat_templates import chat_template
from asvr.interchange.llava_folder import write_folder
from asvr.models.encoders.huggingface import HFVisionEncoder
from asvr.models.llms import HFCausalLM
from asvr.models.projectors import MLPProjector
from asvr.models.transforms import merge_transforms
from asvr.pretrained import Pretrained

TOWERS = {"siglip_vision_model": "full", "clip_vision_model": "default"}  # which features LLaVA keeps: all, or no CLS
LLMS = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "smollm3", "olmo2")
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
# Conversations whose token ids must be the same through the exported processor: questions and answers in turn.
PROBES = (
    ["hello, who are you?"],
    [f"{IMAGE_MARK}\nwhat is it?"],
    [f"{IMAGE_MARK}\n{IMAGE_MARK}\nwhat differs?"],
    [f"what is it? {IMAGE_MARK}"],
    [f"first {IMAGE_MARK} then{IMAGE_MARK}"],
    [f"{IMAGE_MARK}\nwhat is it?", "a house", " and\nthis? ", "(two) houses", "é 你好"],
)


def export_llava(source: Pretrained, folder: str | Path) -> Path:
    """Write ``folder``, whole or not at all. Raises ``ValueError`` with the reason where LLaVA cannot express the
    model, or where the exported processor would not give the token ids that the model was trained with."""
    folder = Path(folder).absolute()
    require_new(folder)
    merge_transforms(source.model)
    refuse_inexpressible(source)
    processor, image_id = build_processor(source)
    check_ids(source, processor, image_id)
    model = build_model(source, image_id)
    with new_folder(folder) as partial:
        write_folder(partial, model, processor, source.precision)
    return folder


def refuse_inexpressible(source: Pretrained) -> None:
    model = source.model
    reasons = []
    if not isinstance(model.encoder, HFVisionEncoder) or model.encoder.model.config.model_type not in TOWERS:
        reasons.append(f"its encoder is {_kind(model.encoder)}; LLaVA folders take {', '.join(TOWERS)}")
    elif isinstance(model.encoder.layer, list):
        reasons.append(f"its encoder gives the features of several layers ({model.encoder.layer})")
    elif model.encoder.layer == 0:
        reasons.append("its encoder gives the patch embeddings (layer 0), in front of the first block")
    parts = [type(m).__name__ for m in model.projector.mlp] if isinstance(model.projector, MLPProjector) else []
    if parts != ["Linear", "GELU", "Linear"]:
        ours = " of ".join([_kind(model.projector), *([", ".join(parts)] if parts else [])])
        reasons.append(f"its projector is {ours}; LLaVA has MLPProjector of Linear, GELU, Linear")
    elif model.projector.place is not None:
        reasons.append("its projector adds positions (positions=True)")
    if not isinstance(model.llm, HFCausalLM) or model.llm.model.config.model_type not in LLMS:
        reasons.append(f"its LLM is {_kind(model.llm)}; this export is tested with {', '.join(LLMS)}")
    elif model.llm.logit_changes:
        reasons.append(f"its LLM changes its logits ({model.llm.logit_changes}), which LLaVA leaves out")
    if model.layout.fixed is None or type(model.layout) is not WholeImage:
        reasons.append(f"its images are laid out by {type(model.layout).__name__}; LLaVA has as many tokens for each")
    if model.visual_attention != "causal":
        reasons.append(
            "its visual tokens see each other (visual_attention='bidirectional'); LLaVA's attention is causal"
        )
    if source.text_tokenizer is None:
        reasons.append("it has no text tokenizer")
    if reasons:
        raise ValueError(
            f"this model cannot be a LLaVA folder: {'; '.join(reasons)}. Its own format, which asvr.load reads, can: "
            "--format asvr"
        )


def _kind(part) -> str:
    config = getattr(getattr(part, "model", None), "config", None)
    return type(part).__name__ + (f" ({config.model_type})" if hasattr(config, "model_type") else "")


def build_model(source: Pretrained, image_id: int) -> LlavaForConditionalGeneration:
    """The model with our weights. The place of an image is an id that the tokenizer gets as its next one: in most
    models a row of zeros that the vocabulary grows by, in a model with spare rows one of those. It is never read, and
    never written (``suppress_tokens``)."""
    ours = source.model
    tower, text = ours.encoder.model.config.to_dict(), ours.llm.model.config.to_dict()
    tower["num_hidden_layers"] = sum(1 for key in ours.encoder.model.state_dict() if key.endswith("layer_norm1.weight"))
    rows = max(text["vocab_size"], image_id + 1)
    text["vocab_size"] = rows
    config = LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=image_id,
        image_seq_length=ours.encoder.num_tokens,
        vision_feature_layer=-1,  # blocks behind the layer that is read are not there
        vision_feature_select_strategy=TOWERS[tower["model_type"]],
        tie_word_embeddings=bool(text.get("tie_word_embeddings")),
    )
    config.dtype = next(ours.llm.model.parameters()).dtype
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    own = model.state_dict()
    tensors = _tensors(ours, own, rows)
    missing, surplus = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    assert not missing and not surplus, (missing, surplus)
    model = LlavaForConditionalGeneration(config)  # real buffers; its weights are replaced
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    tokenizer = source.text_tokenizer
    stops = _stops(source)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.hf.bos_token_id,
        eos_token_id=stops if len(stops) > 1 else stops[0],
        pad_token_id=tokenizer.pad_id,
        suppress_tokens=[image_id],
        do_sample=False,
    )
    return model.eval()


def _stops(source: Pretrained) -> list[int]:
    template, tokenizer = build_template(source.template), source.text_tokenizer
    own = [] if template.stop is None else tokenizer.encode(template.stop, control=True)
    return list(dict.fromkeys([tokenizer.eos_id, *own]))


def _tensors(ours, own: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Our weights under LLaVA's keys."""
    inner = "vision_model." if any(key.startswith("model.vision_tower.vision_model.") for key in own) else ""
    flat = any(key.startswith("vision_model.") for key in ours.encoder.model.state_dict())
    tower = {f"model.vision_tower.{'' if flat else inner}{k}": v for k, v in ours.encoder.model.state_dict().items()}
    projector = {
        f"model.multi_modal_projector.linear_{1 if key.startswith('0.') else 2}.{key.split('.')[1]}": value
        for key, value in ours.projector.mlp.state_dict().items()
    }
    llm = {}
    for key, value in ours.llm.model.state_dict().items():
        if key in ("model.embed_tokens.weight", "lm_head.weight") and len(value) < rows:
            value = torch.cat([value, value.new_zeros(rows - len(value), value.shape[1])])
        llm["lm_head.weight" if key == "lm_head.weight" else f"model.language_model.{key.removeprefix('model.')}"] = (
            value
        )
    tensors = {key: value.detach().cpu() for key, value in (tower | projector | llm).items()}
    return {key: value for key, value in tensors.items() if not _pooling(key)} | _pooling_head(own)


def _pooling(key: str) -> bool:
    return key.startswith("model.vision_tower.") and ".head." in key


def _pooling_head(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """SigLIP's pooling head, where this version of transformers has one in LLaVA: it gives nothing to a patch."""
    return {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in own.items() if _pooling(key)}


def build_processor(source: Pretrained) -> tuple[LlavaProcessor, int]:
    """The processor, and the id of ``<image>``, which the tokenizer gets as a special token if it has none."""
    encoder, tokenizer = source.model.encoder, source.text_tokenizer
    with tempfile.TemporaryDirectory() as copy:
        tokenizer.save_pretrained(copy)
        hf = AutoTokenizer.from_pretrained(
            copy,
            trust_remote_code=False,
            local_files_only=True,
            padding_side="left",  # for generation; what is given here is saved
            model_input_names=["input_ids", "attention_mask"],  # transformers 4 would add token_type_ids
        )
    hf.add_special_tokens(dict(additional_special_tokens=[IMAGE_MARK]), replace_extra_special_tokens=False)
    hf.add_bos_token = False  # the chat template writes it: who tokenises a templated text, as most do, would have two
    if hf.pad_token is None:
        hf.pad_token = hf.convert_ids_to_tokens(tokenizer.pad_id)
    strategy = TOWERS[encoder.model.config.model_type]
    processor = LlavaProcessor(
        image_processor=_image_processor(encoder.transform, source.image_aspect),
        tokenizer=hf,
        patch_size=encoder.patch,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1 if strategy == "default" else 0,
        chat_template=chat_template(
            source.template,
            hf.bos_token if tokenizer.bos_id is not None else "",
            hf.eos_token,
            spaced=tokenizer.encode("a") != tokenizer.encode("a", continues=True)
            and not tokenizer.prefix_after_control,
        ),
    )
    return processor, hf.convert_tokens_to_ids(IMAGE_MARK)


def _image_processor(transform, aspect: str):
    """Hugging Face's PIL processor of the same arithmetic; images are padded, squeezed or cropped as in training."""
    height, width = transform.size
    common = dict(
        resample=RESAMPLE[transform.interpolation], image_mean=list(transform.mean), image_std=list(transform.std)
    )
    crop, whole = aspect != "resize" and transform.center_crop, dict(height=height, width=width)
    size = dict(shortest_edge=height) if crop else whole
    if aspect == "pad":
        return LlavaImageProcessorPil(do_pad=True, do_center_crop=crop, size=size, crop_size=whole, **common)
    if crop:
        return CLIPImageProcessorPil(size=size, crop_size=whole, **common)
    return SiglipImageProcessorPil(size=size, **common)


def check_ids(source: Pretrained, processor: LlavaProcessor, image_id: int) -> None:
    """Raise ``ValueError`` where the exported processor gives other token ids than the model was trained with."""
    template = build_template(source.template)
    for texts in PROBES:
        asked = [{"from": ROLES[i % 2], "value": text} for i, text in enumerate(texts)]
        segments = segments_of(asked, sum(text.count(IMAGE_MARK) for text in texts), template, prompt=True)
        ours, _ = encode_segments(segments, source.text_tokenizer)
        ours = [image_id if token < 0 else token for token in ours]
        prompt = processor.apply_chat_template(as_chat(asked), add_generation_prompt=True)
        theirs = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if ours != theirs:
            raise ValueError(
                f"the exported tokenizer would read {prompt!r} as {theirs}, the model was trained on {ours}: "
                "this template and tokenizer cannot be exported together"
            )


def as_chat(messages: list[dict]) -> list[dict]:
    """LLaVA's messages as transformers' chat, with images and texts as parts of a question where that can say it."""
    return [
        dict(role="user", content=_parts(message["value"]))
        if message["from"] == "human"
        else dict(role="assistant", content=message["value"])
        for message in messages
    ]


def _parts(question: str) -> list[dict] | str:
    image, line = dict(type="image"), f"{IMAGE_MARK}\n"
    first = 0
    while question.startswith(line, first):
        first += len(line)
    if IMAGE_MARK not in question[first:]:
        return [*[image] * (first // len(line)), dict(type="text", text=question[first:])]
    parts = [part for text in question.split(IMAGE_MARK) for part in (image, dict(type="text", text=text))][1:]
    parts = [part for part in parts if part["type"] == "image" or part["text"]]
    images = parts.count(image)
    # Images in front of all text would stand on lines of their own.
    return question if parts[:images] == [image] * images else parts
