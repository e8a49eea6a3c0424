"""The recipes of ``configs/targets/`` at tiny size."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from run_helpers import ROOT

from asvr.models.tokenizers import PixelTokenizer
from asvr.recipe.config import load_config

FOLDER = ROOT / "configs" / "targets" / "scenes"
METHODS = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
PRETRAIN, FINETUNE = 12, 30
# Sizes and steps; all else is the recipe's.
TINY = {
    "text_tokenizer.corpus.scenes": 24,
    "data.train.scenes": 24,
    "evaluation.dataset.scenes": 6,
    "model.encoder.image_size": 64,
    "model.llm.arch.hidden_size": 32,
    "model.llm.arch.intermediate_size": 48,
    "data.micro_batch": 4,
    "data.global_batch": 8,
    "schedule.steps": FINETUNE,
    "stages.pretrain.schedule.steps": PRETRAIN,
    "runtime.log_interval": 1,
    "runtime.checkpoint_interval": 10,
    "runtime.keep_checkpoints": 4,
}


def tiny_method(name: str, changes: dict | None = None) -> Config:
    """The recipe of a method on the scenes, with two stages of a few steps. Codes need a smaller codebook, and pixels'
    a VQGAN, here one with random weights."""
    cfg = load_config(FOLDER / f"{name}.py", TINY)
    for place in (cfg, *cfg.stages.values()):
        for entry in place.get("model", {}).get("reconstruction") or []:
            _shrink(entry.get("tokenizer", {}))
            if entry.get("teacher", {}).get("type") == "LatentEncoder":
                entry.teacher = dict(type="LatentEncoder", name=tiny_vae())
    cfg.merge_from_dict(changes or {})
    return cfg


@cache
def tiny_vae() -> str:
    """The folder of a VAE that nothing has trained, until the end of the process: its latents are a fixed function of
    the image all the same."""
    pytest.importorskip("diffusers", reason="LatentEncoder needs it: pip install -e '.[diffusion]'")
    from asvr.models.encoders import LatentEncoder

    arch = dict(block_out_channels=[8, 8], norm_num_groups=4, latent_channels=4, scaling_factor=5.0)
    torch.manual_seed(0)
    folder = tempfile.mkdtemp(prefix="tiny_vae_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(LatentEncoder(image_size=16, arch=arch).save_pretrained(Path(folder) / "vae"))


def _shrink(tokenizer: dict) -> None:
    """In place, to the tiny encoder's 4 x 4 tokens in place of 8 x 8."""
    if "codebook_size" in tokenizer:
        tokenizer["codebook_size"] = 8
    for part in (tokenizer, tokenizer.get("encoder", {})):
        if "image_size" in part:
            part["image_size"] //= 2
    if tokenizer.get("type") == "PixelTokenizer":
        tokenizer["name"] = tiny_vqgan()


@cache
def tiny_vqgan() -> str:
    """The folder of a VQGAN with 8 codes and a cell of 4 x 4 pixels, until the end of the process."""
    torch.manual_seed(0)
    sizes = dict(embed_dim=4, num_embeddings=8, latent_channels=8, base_channels=32, channel_multiplier=[1, 1, 1])
    tokenizer = PixelTokenizer(image_size=16, arch=dict(sizes, num_res_blocks=0))
    tokenizer.trained.fill_(True)
    folder = tempfile.mkdtemp(prefix="tiny_vqgan_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(tokenizer.save_pretrained(Path(folder) / "tokenizer"))


def records(work_dir: Path, stage: str) -> list[dict]:
    """The lines of metrics.jsonl of one stage."""
    lines = map(json.loads, (work_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["stage"] == stage]
