"""A tiny model with random weights that can be asked, and images of every kind to show to it."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
import vlm_helpers
from data_helpers import byte_level
from PIL import Image

from asvr.pretrained import Pretrained

BOTH = (vlm_helpers.SEMANTIC, dict(vlm_helpers.PIXEL, resample="nearest"))
LLAMA = dict(vlm_helpers.LLAMA, max_position_embeddings=160)


def pretrained(*, reconstruction=BOTH, llm=LLAMA, text_tokenizer=None, **kwargs) -> Pretrained:
    text_tokenizer = text_tokenizer or byte_level()
    model = vlm_helpers.build(reconstruction=reconstruction, llm=llm, vocab_size=len(text_tokenizer.hf), **kwargs)
    with torch.no_grad():
        model.llm.lm_head.weight.mul_(20)  # so that answers are no ties
    return Pretrained(
        model=model.eval(),
        config={},
        text_tokenizer=text_tokenizer,
        template=dict(type="vicuna_v1", system=""),
        image_aspect="square",
    )


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    values = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return Image.fromarray(values.astype(np.uint8))


def broken_files(folder: Path) -> dict[str, Path]:
    """Uploads that are no images, or cannot be taken: what each is, and its file."""
    png, jpeg = io.BytesIO(), io.BytesIO()
    gradient(200, 200).save(png, "PNG")
    gradient(200, 200).save(jpeg, "JPEG")
    contents = {
        "text.png": b"no image",
        "empty.png": b"",
        "truncated.jpg": jpeg.getvalue()[: len(jpeg.getvalue()) // 2],
        "truncated.png": png.getvalue()[:100],
        "corrupt.png": png.getvalue()[:16] + bytes(50) + png.getvalue()[66:],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for name, size in (("large.png", (8000, 7000)), ("bomb.png", (20000, 20000))):
        header = b"IHDR" + struct.pack(">2I", *size) + png.getvalue()[24:29]
        checked = header + struct.pack(">I", zlib.crc32(header))
        (folder / name).write_bytes(png.getvalue()[:12] + checked + png.getvalue()[33:])
    return {name: folder / name for name in [*contents, "large.png", "bomb.png"]}
