"""Tiny encoders that are made of others, and files of their parts."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel

from asvr.models.tokenizers import PixelTokenizer

SIGLIP = dict(
    model_type="siglip_vision_model",
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=8,
    patch_size=4,
)
DINO = dict(
    model_type="dinov2",
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    mlp_ratio=2,
    image_size=12,
    patch_size=4,
)
VQGAN = dict(
    embed_dim=4,
    num_embeddings=7,
    latent_channels=8,
    base_channels=32,
    channel_multiplier=[1, 1],
    num_res_blocks=1,
)
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
