"""The processor of an exported model: chat template, text tokenizer, image processor.

It must give the token ids and the pixels that the model was trained with. `check_ids` compares the ids.
"""

import tempfile

from transformers import AutoTokenizer, LlavaNextProcessor, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from asvr.data.conversation import ROLES, encode_segments, segments_of
from asvr.data.layouts import AnyRes
from asvr.data.templates import IMAGE_MARK, Template, build_template
from asvr.interchange.chat_templates import chat_template
from asvr.interchange.expressible import TOWERS, is_tiled
from asvr.pretrained import Pretrained

RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
# The exported processor must give the same token ids for these conversations. Questions and answers alternate.
PROBES = (
    ["hello, who are you?"],
    [f"{IMAGE_MARK}\nwhat is it?"],
    [f"{IMAGE_MARK}\n{IMAGE_MARK}\nwhat differs?"],
    [f"what is it? {IMAGE_MARK}"],
    [f"first {IMAGE_MARK} then{IMAGE_MARK}"],
    [f"{IMAGE_MARK}\nwhat is it?", "a house", " and\nthis? ", "(two) houses", "é 你好"],
)

Processor = LlavaProcessor | LlavaNextProcessor


def template_of(source: Pretrained) -> Template:
    """The template of training."""
    return build_template(source.template, source.text_tokenizer)


def build_processor(source: Pretrained) -> tuple[Processor, int]:
    """Build the processor. Returns it with the id of ``<image>``, which becomes a special token if it is none yet."""
    encoder, tokenizer = source.model.encoder, source.text_tokenizer
    with tempfile.TemporaryDirectory() as copy:
        tokenizer.save_pretrained(copy)
        hf = AutoTokenizer.from_pretrained(
            copy,
            trust_remote_code=False,
            local_files_only=True,
            padding_side="left",  # for generation; arguments given here are saved
            model_input_names=["input_ids", "attention_mask"],  # without it transformers 4 adds token_type_ids
        )
    hf.add_special_tokens(dict(additional_special_tokens=[IMAGE_MARK]), replace_extra_special_tokens=False)
    hf.add_bos_token = False  # the chat template writes BOS, and most callers tokenise its text with special tokens
    if hf.pad_token is None:
        hf.pad_token = hf.convert_ids_to_tokens(tokenizer.pad_id)
    strategy = TOWERS[encoder.model.config.model_type]
    tiled = is_tiled(source.model)
    processor = (LlavaNextProcessor if tiled else LlavaProcessor)(
        image_processor=(
            _tile_processor(source.model.layout) if tiled else _image_processor(encoder.transform, source.image_aspect)
        ),
        tokenizer=hf,
        patch_size=encoder.patch,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1 if strategy == "default" else 0,
        chat_template=chat_template(
            template_of(source),
            hf.bos_token if tokenizer.bos_id is not None else "",
            hf.eos_token,
            spaced=tokenizer.encode("a") != tokenizer.encode("a", continues=True)
            and not tokenizer.prefix_after_control,
        ),
    )
    return processor, hf.convert_tokens_to_ids(IMAGE_MARK)


def _image_processor(transform, aspect: str):
    """The PIL image processor that pads, squeezes or crops images as in training, with the same arithmetic."""
    height, width = transform.size
    crop, whole = aspect != "resize" and transform.center_crop, dict(height=height, width=width)
    size = dict(shortest_edge=height) if crop else whole
    if aspect == "pad":
        return LlavaImageProcessorPil(
            do_pad=True, do_center_crop=crop, size=size, crop_size=whole, **_arithmetic(transform)
        )
    if crop:
        return CLIPImageProcessorPil(size=size, crop_size=whole, **_arithmetic(transform))
    return SiglipImageProcessorPil(size=size, **_arithmetic(transform))


def _tile_processor(layout: AnyRes) -> LlavaNextImageProcessorPil:
    """The PIL image processor for tiles. Overview and tiles have the encoder's size, so none is resized or cropped."""
    height, width = layout.transform.size
    return LlavaNextImageProcessorPil(
        size=dict(shortest_edge=height),
        crop_size=dict(height=height, width=width),
        image_grid_pinpoints=grid_pinpoints(layout),
        **_arithmetic(layout.transform),
    )


def grid_pinpoints(layout: AnyRes) -> list[list[int]]:
    """LLaVA-NeXT's ``image_grid_pinpoints``: height and width in pixels of each grid of tiles."""
    height, width = layout.transform.size
    return [[rows * height, columns * width] for rows, columns in layout.grids]


def _arithmetic(transform) -> dict:
    return dict(
        resample=RESAMPLE[transform.interpolation], image_mean=list(transform.mean), image_std=list(transform.std)
    )


def check_ids(source: Pretrained, processor: Processor, image_id: int) -> None:
    """Raise ``ValueError`` if the exported processor gives other token ids than those of training."""
    template = template_of(source)
    for texts in PROBES:
        asked = [{"from": ROLES[i % 2], "value": text} for i, text in enumerate(texts)]
        segments = segments_of(asked, sum(text.count(IMAGE_MARK) for text in texts), template, prompt=True)
        ours, _ = encode_segments(segments, source.text_tokenizer)
        ours = [image_id if token < 0 else token for token in ours]
        prompt = processor.apply_chat_template(as_chat(asked), add_generation_prompt=True)
        theirs = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if ours != theirs:
            raise ValueError(
                f"the exported tokenizer would read {prompt!r} as {theirs}, but the model was trained on {ours}: "
                "this template and tokenizer cannot be exported together; use --format asvr"
            )


def as_chat(messages: list[dict]) -> list[dict]:
    """LLaVA's messages as transformers' chat. Images and texts become parts of a question, if the parts give the same
    text."""
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
    # As parts, images in front of all text would get lines of their own.
    return question if parts[:images] == [image] * images else parts
