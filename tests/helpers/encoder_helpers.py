"""Tiny encoders that are made of others, and files of their parts."""

from pathlib import Path

import torch
from run_helpers import SIGLIP
from transformers import AutoConfig, AutoModel
from vlm_helpers import PIXEL as SMALL

from asvr.models.tokenizers import PixelTokenizer

DINO = dict(
    model_type="dinov2",
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    mlp_ratio=2,
    image_size=12,
    patch_size=4,
)
VQGAN = SMALL["tokenizer"]["arch"]
TOWER = dict(type="HFVisionEncoder", arch=SIGLIP)  # 2 x 2 tokens of width 8
OTHER = dict(type="HFVisionEncoder", arch=DINO, layer=-1, transform=dict(center_crop=False))  # 3 x 3 of width 12
PIXEL = dict(type="PixelTokenizer", image_size=4, arch=VQGAN)  # 2 x 2 codes of 7, width 4


def save_tower(folder: Path, arch: dict, seed: int = 0) -> str:
    torch.manual_seed(seed)
    fields = dict(arch)
    AutoModel.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).save_pretrained(folder)
    return str(folder)


def save_vqgan(folder: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    tokenizer = PixelTokenizer(image_size=4, arch=VQGAN)
    tokenizer.trained.fill_(True)
    return str(tokenizer.save_pretrained(folder))
