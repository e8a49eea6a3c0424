"""Write a LLaVA model and its processor in the form of the published LLaVA folders, which transformers 4 and 5 read.

`save_pretrained` of transformers 5 writes other names of tensors and fields, which transformers 4 does not find.
"""

import json
from pathlib import Path

from huggingface_hub import save_torch_state_dict
from transformers import PreTrainedModel, ProcessorMixin

from asvr.base import compat
from asvr.data.text_tokenizer import TextTokenizer
from asvr.data.transforms import LONGEST_SIDE

OLDEST_TRANSFORMERS = "4.53"  # tests/interchange/test_export_readers.py reads every kind of export with it
# Tensors of the model -> of the published folders.
_PREFIXES = {
    "model.vision_tower.vision_model.": "vision_tower.vision_model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.image_newline": "image_newline",
}
# Checked by tests/users/test_users_pixels.py, input by input.
_ANY = """\
- transparency (RGBA, grey with alpha, a transparent colour): the model was trained on the stored colours. Transformers
  4.53 to 5.17 read them too, but 5.24 puts the image on white. `image = image.convert("RGB")` and then
  `image.info.pop("transparency", None)` give the pixels of training
- 16-bit grey: the model was trained on the upper eight bits. Transformers cuts values off at 255, so nearly
  everything becomes white. Save such an image with 8 bits first
- EXIF orientation: the model was trained on images as they are stored. Transformers rotates a file that is given by
  its path or URL. Open the file with PIL to leave it as it is"""
_LONG = f"""
- a side above {LONGEST_SIDE} pixels, before or after resizing: training reduces such an image in another way"""
CARD = """\
# {title} model, exported by asvr

`{kind}` and `AutoProcessor` of transformers {oldest} or newer read this folder.

```python
processor = AutoProcessor.from_pretrained(FOLDER, backend="pil")  # before transformers 5.4: use_fast=False
model = {kind}.from_pretrained(FOLDER)
```

The PIL image processor gives the pixels of training. The torchvision backend rounds {rounding}. The chat template
writes BOS and the spaces as in training. Shorter prompts of a batch are padded on the left
(`padding=True`).
{precision}
Inputs that give other pixels than in training:

{inputs}

`asvr check-export FOLDER` asks the model in transformers, vLLM or SGLang and compares the answers.
"""
BF16 = """
The model was trained under autocast to bfloat16. Transformers computes in the dtype of the loaded weights, so an answer
may differ if two tokens are nearly equally probable. `asvr.load(..., precision="float32")` gives the answers of float32
weights.
"""


def different_inputs(tiled: bool) -> str:
    """A Markdown list of images that get other pixels in transformers than in training, and what to do about it."""
    return _ANY if tiled else _ANY + _LONG


def write_folder(folder: Path, model: PreTrainedModel, processor: ProcessorMixin, precision: str | None) -> None:
    """Write all files into ``folder``, which exists. precision: see `asvr.base.precision`."""
    save_torch_state_dict(_published(model), folder)
    compat.give_mode_of_new_files(*folder.glob("*.safetensors"))
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    _rewrite(folder / "config.json", _with_old_fields)
    model.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    # transformers 4 reads the image processor from a file of its own.
    processor.image_processor.save_pretrained(folder)
    _rewrite(folder / "processor_config.json", _without_image_processor)
    TextTokenizer(processor.tokenizer).save_pretrained(folder)
    (folder / "README.md").write_text(_card(model, precision), encoding="utf-8")


def _card(model: PreTrainedModel, precision: str | None) -> str:
    tiled = hasattr(model.config, "image_grid_pinpoints")
    return CARD.format(
        title="LLaVA-NeXT" if tiled else "LLaVA",
        kind=type(model).__name__,
        oldest=OLDEST_TRANSFORMERS,
        rounding="differently, by up to two levels of 255" if tiled else "differently, by one level of 255",
        precision=BF16 if precision == "bf16" else "",
        inputs=different_inputs(tiled),
    )


def _published(model: PreTrainedModel) -> dict:
    tensors = {}
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        old = next(prefix for prefix in _PREFIXES if key.startswith(prefix))
        tensors[_PREFIXES[old] + key.removeprefix(old)] = value
    return tensors


def _with_old_fields(config: dict) -> dict:
    """The config with the rotary settings in two places: where transformers 5 reads them, and where transformers 4
    does."""
    text = config["text_config"]
    rope = dict(text.get("rope_parameters") or {})
    if "full_attention" in rope:  # Gemma 3 has two
        text["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    for field in ("rope_theta", "partial_rotary_factor"):
        if field in rope:
            text[field] = rope.pop(field)
    kind = rope.get("rope_type", "default")
    if kind == "longrope":  # Phi-3 accepts three fields of it and no others
        text["rope_scaling"] = dict(type=kind, short_factor=rope["short_factor"], long_factor=rope["long_factor"])
    elif kind != "default":
        text["rope_scaling"] = rope
    return config


def _without_image_processor(fields: dict) -> dict:
    return {key: value for key, value in fields.items() if key != "image_processor"}


def _rewrite(file: Path, change) -> None:
    fields = change(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
