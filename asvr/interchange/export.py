"""A trained model as a plain Hugging Face folder: ``LlavaForConditionalGeneration``, or, for a model with tiles,
``LlavaNextForConditionalGeneration``, and its processor.

The reconstruction heads and the visual tokenizers are not needed to answer. They are left out.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from asvr.base.files import new_folder, require_new
from asvr.interchange.expressible import TOWERS, is_tiled, refuse_inexpressible
from asvr.interchange.llava_folder import write_folder
from asvr.interchange.processors import build_processor, check_ids, grid_pinpoints, template_of
from asvr.models.transforms import merge_transforms
from asvr.pretrained import Pretrained

NEWLINE = "model.image_newline"

Llava = LlavaForConditionalGeneration | LlavaNextForConditionalGeneration


def export_llava(source: Pretrained, folder: str | Path) -> Path:
    """Write the exported model to ``folder``. If writing fails, no folder is left.

    Raises ``ValueError`` with the reason if LLaVA cannot express the model, or if the exported processor would not give
    the token ids of training.
    """
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


def build_model(source: Pretrained, image_id: int) -> Llava:
    """Build the transformers model with our weights.

    image_id: the token id that marks a visual token. It is the tokenizer's next free id. In most models the vocabulary
    grows by one row for it. A model with spare rows needs no new one. The row is never read. The token is never
    written, because ``suppress_tokens`` forbids it. Engines that ignore this setting get the mean of all other logits
    for it.
    """
    ours = source.model
    text = ours.llm.model.config.to_dict()
    rows = max(text["vocab_size"], image_id + 1)
    config = _config(ours, text | dict(vocab_size=rows), image_id)
    kind = LlavaNextForConditionalGeneration if is_tiled(ours) else LlavaForConditionalGeneration
    with torch.device("meta"):
        model = kind(config)
    own = model.state_dict()
    tensors = _tensors(ours, own, rows)
    missing, surplus = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    assert not missing and not surplus, (missing, surplus)
    model = kind(config)  # real buffers; its weights are replaced
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


def _config(ours, text: dict, image_id: int) -> LlavaConfig | LlavaNextConfig:
    tower = ours.encoder.model.config.to_dict()
    tower["num_hidden_layers"] = sum(1 for key in ours.encoder.model.state_dict() if key.endswith("layer_norm1.weight"))
    tiles = dict(image_grid_pinpoints=grid_pinpoints(ours.layout)) if is_tiled(ours) else {}
    config = (LlavaNextConfig if is_tiled(ours) else LlavaConfig)(
        vision_config=tower,
        text_config=text,
        image_token_index=image_id,
        image_seq_length=ours.encoder.num_tokens,
        vision_feature_layer=-1,  # the exported tower ends with the layer that is read
        vision_feature_select_strategy=TOWERS[tower["model_type"]],
        tie_word_embeddings=bool(text.get("tie_word_embeddings")),
        **tiles,
    )
    config.dtype = next(ours.llm.model.parameters()).dtype
    return config


def _stops(source: Pretrained) -> list[int]:
    template, tokenizer = template_of(source), source.text_tokenizer
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
    newline = {NEWLINE: ours.separators.weight[0]} if NEWLINE in own else {}
    llm = {}
    for key, value in ours.llm.model.state_dict().items():
        if key in ("model.embed_tokens.weight", "lm_head.weight") and len(value) < rows:
            mean = value.float().mean(0, keepdim=True).to(value.dtype)
            value = torch.cat([value, mean.expand(rows - len(value), -1)])
        llm["lm_head.weight" if key == "lm_head.weight" else f"model.language_model.{key.removeprefix('model.')}"] = (
            value
        )
    tensors = {key: value.detach().cpu() for key, value in (tower | projector | newline | llm).items()}
    return {key: value for key, value in tensors.items() if not _pooling(key)} | _pooling_head(own)


def _pooling(key: str) -> bool:
    return key.startswith("model.vision_tower.") and ".head." in key


def _pooling_head(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """SigLIP's pooling head, where this version of transformers has one in LLaVA: it gives nothing to a patch."""
    return {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in own.items() if _pooling(key)}
