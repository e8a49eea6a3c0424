"""Cells of the compatibility matrix: a tiny run with one value of each axis. The first value of an axis is the default.

Images have 16 x 16 pixels and 4 x 4 visual tokens with every encoder but those that say otherwise.
"""

import json
from functools import cache
from itertools import combinations
from pathlib import Path
from zlib import crc32

import timm
import torch
from encoder_helpers import save_tower
from llm_families import FAMILIES
from mmengine.config import Config
from PIL import Image
from safetensors.torch import save_file
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from asvr.data.text_tokenizer import ByteLevelBPE
from asvr.models.encoders import LatentEncoder
from asvr.recipe.config import import_custom
from asvr.registry import ENCODERS, VISUAL_TOKENIZERS

LENGTH = 128  # of a sample, in tokens
SIZES = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4)
INNER = dict(SIZES, intermediate_size=12)
TOWERS = {
    "siglip": dict(INNER, model_type="siglip_vision_model"),
    "clip": dict(INNER, model_type="clip_vision_model"),
    "dinov2": dict(SIZES, model_type="dinov2_with_registers", num_register_tokens=4, mlp_ratio=2),
    "naflex": {key: value for key, value in INNER.items() if key != "image_size"}
    | dict(model_type="siglip2_vision_model", num_patches=16),
}
OWN = ("examples.my_components", "examples.feature_target")  # a user's components
HEAD = dict(type="DepthTransformerHead", width=8, layers=1, num_heads=2)
VQGAN = dict(embed_dim=4, num_embeddings=6, latent_channels=8, base_channels=32, channel_multiplier=[1, 1])
PIXEL = dict(type="PixelTokenizer", image_size=8, arch=dict(VQGAN, num_res_blocks=0))

LLMS = {
    "llama": "llama2",
    "llama, tied": "smollm2",
    "mistral": "mistral",
    "qwen2": "qwen2.5",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "phi3": "phi3",
    "gpt-oss": "gpt-oss",
    "mamba": "mamba",
}
AXES = {
    "encoder": ("siglip", "clip", "dinov2", "naflex", "timm", "pair", "s2", "codes", "tiles", "own"),
    "llm": tuple(LLMS),
    "target": (
        *("none", "codes", "codes of another encoder", "pixel codes", "two kinds of codes", "soft codes"),
        *("product codes", "shared vocabulary", "features of a teacher", "features", "embeddings"),
        *("embeddings, averaged", "masked features", "masked latents", "denoising", "own"),
    ),
    "attention": ("causal", "bidirectional"),
    "trained": ("all but the encoder", "projector and heads", "all"),
    "rows": ("padded", "packed"),
    "cache": ("none", "features", "codes"),
    "parallel": ("one process", "DDP", "FSDP2"),
    "adapters": ("none", "LoRA", "QLoRA", "Float8"),
    "precision": ("float32", "bf16"),
    "export": ("own folder", "LLaVA folder"),
}
DEFAULTS = {axis: values[0] for axis, values in AXES.items()}
PARALLEL = {"one process": None, "DDP": dict(type="DDP"), "FSDP2": dict(type="FSDP2")}
TRANSFORMS = {
    "LoRA": dict(type="Lora", r=2),
    "QLoRA": dict(type="QLora", r=2),
    "Float8": dict(type="Float8", emulate=True),
}
CACHES = {"none": False, "features": True, "codes": "codes"}


def pairs(cell: dict[str, str]) -> set[frozenset]:
    """Every two values of a cell, each as (axis, value)."""
    return set(map(frozenset, combinations(cell.items(), 2)))


class Files:
    """Weights, images and a text tokenizer for all cells, each written when it is first needed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.written = cache(self._write)
        import_custom(dict(imports=list(OWN), allow_failed_imports=False))

    def _write(self, name: str) -> str:
        place = self.folder / name
        place.mkdir(parents=True)
        torch.manual_seed(0)
        if name == "text":
            ByteLevelBPE(vocab_size=300, corpus=_Corpus()).save_pretrained(place)
        elif name == "images":
            return _write_images(place)
        elif name == "timm":
            save_file(timm.create_model("test_resnet").state_dict(), place / "model.safetensors")
            return str(place / "model.safetensors")
        elif name == "vqgan":
            tokenizer = VISUAL_TOKENIZERS.build(PIXEL)
            tokenizer.trained.fill_(True)
            return str(tokenizer.save_pretrained(place / "tokenizer"))
        elif name == "vae":
            arch = dict(block_out_channels=[8, 8], norm_num_groups=4, latent_channels=4, scaling_factor=5.0)
            return str(LatentEncoder(image_size=8, arch=arch).save_pretrained(place / "vae"))
        else:
            save_tower(place, TOWERS[name])
            if name == "naflex":
                Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16).save_pretrained(place)
        return str(place)

    def fitted(self, encoder: dict, **settings) -> dict:
        """The config of a tokenizer of an encoder's features that is fitted ahead."""
        folder = self.folder / f"tokenizer_{crc32(json.dumps([encoder, settings], sort_keys=True).encode())}"
        config = dict(type="SemanticTokenizer", **(dict(depth=2, codebook_size=4) | settings))
        if not folder.is_dir():
            torch.manual_seed(0)
            tokenizer = VISUAL_TOKENIZERS.build(dict(config, encoder=ENCODERS.build(dict(encoder))))
            tokenizer.fit([torch.randn(32, 16, tokenizer.encoder.width)], progress=False)
            tokenizer.save_pretrained(folder)
        return dict(config, name=str(folder))

    def encoder(self, name: str) -> dict:
        if name == "timm":
            return dict(type="TimmEncoder", model="test_resnet", weights=self.written("timm"), layer=-1, image_size=128)
        if name == "pair":
            parts = [self.encoder("siglip"), self.encoder("dinov2")]
            return dict(type="MultiEncoder", join="channel", encoders=parts)
        if name == "s2":
            return dict(type="S2", encoder=self.encoder("siglip"), scales=[1, 2])
        if name == "codes":
            tower = self.encoder("siglip")
            return dict(type="CodeEncoder", tokenizer=dict(self.fitted(tower), encoder=tower))
        if name == "own":
            return dict(type="ColorPatches", image_size=16, patch=4, cells=2)
        if name == "naflex":
            return dict(type="NaFlexEncoder", name=self.written("naflex"), max_num_patches=16)
        kind = "siglip" if name == "tiles" else name
        return dict(type="HFVisionEncoder", name=self.written(kind), arch=TOWERS[kind])

    def targets(self, name: str, encoder: dict) -> list[dict]:
        def code(name: str, tokenizer: dict, **own) -> dict:
            return dict(name=name, tokenizer=tokenizer, head=HEAD, weight=0.5, shift=1) | own

        native = dict(resample="nearest") if encoder["type"] == "NaFlexEncoder" else {}

        def feature(kind: str, **own) -> list[dict]:
            return [dict(name="features", type=kind, weight=0.5, **own)]

        teacher = dict(teacher=dict(self.encoder("dinov2"), transform=dict(center_crop=False)), resample="bilinear")
        early = dict(self.encoder("clip"), layer=1, transform=dict(center_crop=False))
        other = code("appearance", dict(self.fitted(early), encoder=early), **native)
        return {
            "none": lambda: [],
            "codes": lambda: [code("semantic", self.fitted(encoder))],
            "codes of another encoder": lambda: [other],
            "pixel codes": lambda: [
                code("pixel", dict(PIXEL, name=self.written("vqgan")), head=dict(type="LinearHead"), **native)
            ],
            "two kinds of codes": lambda: [code("semantic", self.fitted(encoder)), other],
            "soft codes": lambda: [
                code("semantic", self.fitted(encoder), type="SoftCodeTarget", temperature=1.0, top=2)
            ],
            "product codes": lambda: [code("semantic", self.fitted(encoder, quantizer="product"))],
            "shared vocabulary": lambda: [
                dict(
                    name="semantic",
                    type="SharedVocabularyTarget",
                    tokenizer=self.fitted(encoder, depth=1),
                    weight=0.5,
                    shift=1,
                )
            ],
            "features of a teacher": lambda: feature("FeatureTarget", tap=1, mlp=dict(layers=2), **teacher),
            "features": lambda: feature("FeatureTarget", mlp=dict(layers=2), shift=1),
            "embeddings": lambda: feature("EmbeddingTarget", loss=dict(type="MSELoss"), shift=1),
            "embeddings, averaged": lambda: feature("EmbeddingTarget", decay=0.9, tap=1, mlp={}, shift=1),
            "masked features": lambda: feature("MaskedFeatureTarget", masks=dict(min_context=3), **teacher),
            "masked latents": lambda: feature("MaskedLatentTarget", mask_ratio=0.4, mlp=dict(layers=2, width=8)),
            "denoising": lambda: feature(
                "DenoisingTarget",
                teacher=dict(type="LatentEncoder", name=self.written("vae")),
                width=8,
                layers=1,
                num_heads=2,
                times=2,
            ),
            "own": lambda: feature("CosineFeatures", tap=1, shift=1),
        }[name]()


class _Corpus:
    def texts(self, template=None):
        yield "what is it? a small red house, two dogs, user and assistant"


def _write_images(folder: Path) -> str:
    """A file of three captions, one of which is longer, and a text."""
    rows = []
    for i in range(4):
        question = ("<image>\n" if i else "") + "what is it?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "a dog" if i == 1 else "red"}]
        rows.append(dict(conversations=turns) | (dict(image=f"{i}.png") if i else {}))
        Image.new("RGB", (16 + 4 * i, 16), (60 * i, 200 - 40 * i, 90)).save(folder / f"{i}.png")
    (folder / "rows.json").write_text(json.dumps(rows))
    return str(folder / "rows.json")


def config_of(cell: dict[str, str], files: Files) -> Config:
    """The config of a cell's run: two steps of four samples."""
    encoder, targets = files.encoder(cell["encoder"]), files.targets(cell["target"], files.encoder(cell["encoder"]))
    train = ["projector", *(["heads"] if targets else [])]
    train += [] if cell["trained"] == "projector and heads" else ["llm"]
    train += ["encoder"] if cell["trained"] == "all" else []
    arch = dict(FAMILIES[LLMS[cell["llm"]]])
    if "max_position_embeddings" in arch:
        arch["max_position_embeddings"] = LENGTH
    model = dict(
        type="VLM",
        encoder=encoder,
        projector=dict(type="MLPProjector"),
        llm=dict(type="HFCausalLM", arch=arch),
        reconstruction=targets,
        visual_attention=cell["attention"],
    )
    if cell["encoder"] == "tiles":
        model["layout"] = dict(type="AnyRes", grids=[(1, 2), (2, 1)])
    data = dict(
        train=dict(type="LlavaDataset", ann_file=files.written("images")),
        template=dict(type="vicuna_v1", system=""),
        max_length=LENGTH,
        image_aspect="square",
        on_error="raise",
        pack=cell["rows"] == "packed",
        cache=CACHES[cell["cache"]],
        micro_batch=2,
        global_batch=4,
        num_workers=0,
    )
    if data["cache"] == "codes":
        data["cache_dir"] = str(files.folder / "codes")
    layers = ["llm.*.mixer.in_proj" if cell["llm"] == "mamba" else "llm.*.self_attn"]
    transform = TRANSFORMS.get(cell["adapters"])
    return Config(
        dict(
            custom_imports=dict(imports=list(OWN), allow_failed_imports=False),
            default_scope="asvr",
            text_tokenizer=dict(type="HFTokenizer", name=files.written("text")),
            model=model,
            data=data,
            optim=dict(type="AdamW", lr=1e-3, weight_decay=0.0, clip_grad=1.0, precision=cell["precision"]),
            schedule=dict(steps=2, warmup_ratio=0.0),
            stages=dict(train=dict(train=train)),
            model_transforms=[dict(transform, layers=layers)] if transform else [],
            parallel=PARALLEL[cell["parallel"]],
            runtime=dict(seed=0, device="cpu", log_interval=1, checkpoint_interval=2, keep_checkpoints=1),
        )
    )
