"""A tower that reads images in their own resolution, images of many shapes, and a run on them."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Siglip2VisionConfig, Siglip2VisionModel
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from asvr.recipe.config import load_config

MOST = 12  # visual tokens of an image
SIZES = [(40, 20), (30, 30), (300, 10), (12, 13), (20, 60), (64, 48), (9, 40), (100, 90)]
TOWER = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_patches=16,
    patch_size=4,
)

CONFIG = """
text_tokenizer = dict(type="ByteLevelBPE", vocab_size=300, corpus=dict(type="LlavaDataset", ann_file={data!r}))
model = dict(
    type="VLM",
    encoder=dict(type="NaFlexEncoder", name={tower!r}, max_num_patches={most}),
    projector=dict(type="MLPProjector"),
    llm=dict(
        type="HFCausalLM",
        arch=dict(
            model_type="llama", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=256,
        ),
    ),
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(type="SemanticTokenizer", depth=2, codebook_size=8),
            fit=dict(vectors_per_code=8, iterations=3),
            head=dict(type="DepthTransformerHead", width=16, layers=1, num_heads=2),
            shift=1,
        )
    ],
)
data = dict(
    train=dict(type="LlavaDataset", ann_file={data!r}),
    template=dict(type="vicuna_v1", system=""),
    max_length=128,
    image_aspect="square",
    on_error="raise",
    cache=True,
    micro_batch=4,
    global_batch=8,
    num_workers=0,
)
optim = dict(type="AdamW", lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01, clip_grad=1.0, precision="float32")
schedule = dict(steps=4, warmup_ratio=0.0)
stages = dict(train=dict(train=["projector", "heads", "llm"]))
evaluation = dict(dataset=dict(type="LlavaDataset", ann_file={data!r}), batch_size=4, max_new_tokens=4)
runtime = dict(device="cpu", seed=0, log_interval=1, checkpoint_interval=2, keep_checkpoints=3)
"""


def noise(size: tuple[int, int]) -> Image.Image:
    """Coarse, so that resizing keeps something of it."""
    cells = np.random.RandomState(sum(size)).randint(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)


def write_tower(folder: Path) -> str:
    torch.manual_seed(0)
    Siglip2VisionModel(Siglip2VisionConfig(**TOWER)).save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=4, max_num_patches=MOST).save_pretrained(folder)
    return str(folder)


def write_data(folder: Path) -> str:
    """Captions of images of all ``SIZES``, one record with two of them and one with none."""
    folder.mkdir()
    records = []
    for i, size in enumerate(SIZES):
        noise(size).save(folder / f"{i}.png")
        texts = [("human", "<image>\nhow large is it?"), ("gpt", f"{size[0]} by {size[1]}")]
        records.append(dict(image=f"{i}.png", conversations=[{"from": who, "value": text} for who, text in texts]))
    both = [("human", "<image>\n<image>\nwhich is larger?"), ("gpt", "the second")]
    records.append(dict(image=["0.png", "7.png"], conversations=[{"from": w, "value": t} for w, t in both]))
    alone = [("human", "who are you?"), ("gpt", "a small model")]
    records.append(dict(conversations=[{"from": who, "value": text} for who, text in alone]))
    (folder / "data.json").write_text(json.dumps(records))
    return str(folder / "data.json")


def native_config(folder: Path, changes: dict | None = None):
    """In a folder where tower and images are made once."""
    folder.mkdir(exist_ok=True)
    tower = write_tower(folder / "tower") if not (folder / "tower").is_dir() else str(folder / "tower")
    data = write_data(folder / "images") if not (folder / "images").is_dir() else str(folder / "images/data.json")
    file = folder / "config.py"
    file.write_text(CONFIG.format(tower=tower, data=data, most=MOST))
    return load_config(file, changes or {})
