"""The recipes at tiny size: tiny random models in Hugging Face's own layout, and a few rows of data."""

import json
from pathlib import Path

import torch
from data_helpers import byte_level, sentencepiece_like
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, SiglipConfig, SiglipModel

from asvr.registry import ENCODERS, VISUAL_TOKENIZERS

SIGLIP = "google/siglip-so400m-patch14-384"
TOKENIZER = "asvr/siglip-so400m-rvq8"
LAYER = 1  # of the tiny tower, for the appearance codes, which are of SigLIP's 6th layer in the recipes
TOKENIZERS = {"semantic": TOKENIZER, "appearance": "asvr/siglip-so400m-layer6-rvq8"}
SIZES = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
LLMS = {
    "lmsys/vicuna-7b-v1.5": (LlamaConfig, sentencepiece_like),
    "lmsys/vicuna-13b-v1.5": (LlamaConfig, sentencepiece_like),
    "mistralai/Mistral-7B-Instruct-v0.2": (MistralConfig, sentencepiece_like),
    "Qwen/Qwen2.5-7B-Instruct": (Qwen2Config, byte_level),
}
# Nothing of a model but the size of its head is in here: widths, layers and grids come from the folders.
TARGET = {
    "tokenizer.depth": 2,
    "tokenizer.codebook_size": 8,
    "head.width": 16,
    "head.layers": 1,
    "head.num_heads": 2,
}


def target_options(targets: list[str]) -> dict:
    own = {f"model.reconstruction.{i}.{key}": value for i in range(len(targets)) for key, value in TARGET.items()}
    layers = [i for i, name in enumerate(targets) if name == "appearance"]
    return own | {f"model.reconstruction.{i}.tokenizer.encoder.layer": LAYER for i in layers}


def make_zoo(root: Path, dtype: str = "bfloat16") -> Path:
    """Tiny random models in the folders that the recipes name. dtype: of the encoder that the tokenizers are for."""
    torch.manual_seed(0)
    tower = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
    text = dict(tower, vocab_size=16, max_position_embeddings=8)
    SiglipModel(
        SiglipConfig(text_config=text, vision_config=dict(tower, image_size=28, patch_size=14))
    ).save_pretrained(root / SIGLIP)
    processor = dict(
        do_resize=True, size=dict(height=28, width=28), resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    (root / SIGLIP / "preprocessor_config.json").write_text(json.dumps(processor))
    for name, (config, tokenizer) in LLMS.items():
        text_tokenizer = tokenizer()
        ids = dict(bos_token_id=1, eos_token_id=2)
        llm = AutoModelForCausalLM.from_config(config(vocab_size=len(text_tokenizer) + 3, **SIZES, **ids))
        llm.to(torch.bfloat16).save_pretrained(root / name)
        text_tokenizer.save_pretrained(root / name)
    for name, layer in ((TOKENIZERS["semantic"], -2), (TOKENIZERS["appearance"], LAYER)):
        encoder = ENCODERS.build(dict(type="HFVisionEncoder", name=str(root / SIGLIP), layer=layer, dtype=dtype))
        rvq = VISUAL_TOKENIZERS.build(dict(type="SemanticTokenizer", depth=2, codebook_size=8, encoder=encoder))
        rvq.fit([encoder(torch.rand(12, 3, 28, 28)).detach()], progress=False)
        rvq.save_pretrained(root / name)
    return root


def make_data(folder: Path) -> Path:
    """LLaVA rows: one image, two images, text only; images of several shapes."""
    for i in range(6):
        Image.new("RGB", (20 + 10 * i, 30), (40 * i, 200 - 30 * i, 90)).save(folder / f"{i}.png")

    def turns(question: str, answer: str) -> list[dict]:
        return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]

    captions = [
        dict(image=f"{i}.png", conversations=turns("<image>\nwhat is it?", "a small red house")) for i in range(6)
    ]
    chats = [
        dict(image="0.png", conversations=turns("<image>\nwhat color is the car?", "it is blue")),
        dict(image=["1.png", "2.png"], conversations=turns("<image> and <image>: the image?", "two dogs")),
        dict(conversations=turns("how many dogs are there?", "there are two") + turns("what color?", "red")),
        dict(image="3.png", conversations=turns("what is in the picture?\n<image>", "a house on the hill")),
    ]
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "chats.json").write_text(json.dumps(chats))
    return folder


def options(data: Path, targets: list[str]) -> dict:
    return {
        "data.train.ann_file": str(data / "captions.json"),
        "data.train.image_folder": str(data),
        "stages.finetune.data.train.ann_file": str(data / "chats.json"),
        "stages.finetune.data.train.image_folder": str(data),
        "data.max_length": 200,
        "data.num_workers": 0,
        "data.micro_batch": 2,
        "data.global_batch": 4,
        "stages.finetune.data.micro_batch": 2,
        "stages.finetune.data.global_batch": 4,
        "stages.pretrain.schedule": dict(epochs=2),  # of 6 rows in steps of 4: 3 steps
        "stages.finetune.schedule": dict(epochs=3),  # of 4 rows: 3 steps
        "runtime.log_interval": 1,
        "runtime.device": "cpu",
        **target_options(targets),
    }


def final(work_dir: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(sorted((work_dir / stage / "checkpoints").iterdir())[-1] / "model.safetensors")
