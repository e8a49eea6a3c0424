"""Exported folders, and what this library computes for them."""

import json
from pathlib import Path

import numpy as np
import torch
from data_helpers import byte_level
from llm_families import EXPORTED, FAMILIES
from PIL import Image
from test_export import CASES, LLM, TOWER, tiny

from asvr.interchange.export import export_llava
from asvr.pretrained import Pretrained

COUNT = 8  # new tokens of an answer
QUESTIONS = ["what color is the house?", "how many dogs are there?", "what is in the picture and on the hill?"]
# Width and height in pixels of each question's images.
SIZES = ([(40, 30)], [(28, 28), (100, 20)], [])
TILED = ("qwen3", "gemma3", "phi3")  # LLM families that are tried with tiles too
# More cells than TOWER has, so that unpadding leaves out rows and columns of them.
FINE = dict(TOWER, image_size=56)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def of_family(family: str, tower: str = "siglip_vision_model", changes: dict | None = None) -> Pretrained:
    """A tiny model with the switches of a real LLM of that family."""
    arch = {key: value for key, value in FAMILIES[family].items() if key not in ("bos_token_id", "eos_token_id")}
    own = byte_level()
    arch |= dict(vocab_size=len(own), max_position_embeddings=512, initializer_range=LLM["initializer_range"])
    changes = dict(llm=dict(type="HFCausalLM", arch=arch)) | (changes or {})
    return tiny(tower, "llama", "chatml", lambda: own, changes)


def tiled(tower: str, family: str = "llama2", **layout) -> Pretrained:
    encoder = dict(type="HFVisionEncoder", layer=-2, arch=dict(FINE, model_type=tower))
    return of_family(family, changes=dict(encoder=encoder, layout=dict(type="AnyRes", **layout)))


# By name, a model of each kind that is exported.
KINDS = {
    **{f"llava-{family}": lambda family=family: of_family(family) for family in EXPORTED},
    "llava-clip": lambda: tiny(*CASES[3]),
    "next-siglip": lambda: tiled("siglip_vision_model"),
    "next-clip": lambda: tiled("clip_vision_model"),
    **{f"next-{family}": lambda family=family: tiled("siglip_vision_model", family) for family in TILED},
}


def source_of(kind: str) -> Pretrained:
    return KINDS[kind]()


def images_of(sizes) -> list[Image.Image]:
    return [noise(*size, seed=i) for i, size in enumerate(sizes)]


@torch.no_grad()
def computed(source: Pretrained, question: str, images: list[Image.Image], image_id: int) -> dict[str, np.ndarray]:
    """ids, pixels, how many crops each image has, and logits of a prompt."""
    batch = source.batch([dict(images=images, messages=[{"from": "human", "value": question}])])
    embeds_BTH, _ = source.model.embed(batch)
    logits_BTV = source.model.llm.lm_head(source.model.llm.hidden(embeds_BTH)[-1])
    ids = [image_id if token < 0 else token for token in batch.input_ids_BT[0].tolist()]
    pixels = batch.pixels["encoder"].numpy() if images else np.zeros(0)
    crops = [source.model.layout(image.size).num_crops for image in images]
    return dict(ids=np.array(ids), pixels=pixels, crops=np.array(crops), logits=logits_BTV[0].numpy())


def write_expected(source: Pretrained, folder: Path, sizes=SIZES) -> None:
    """Export a model to ``folder``, and write what it computes beside it, for `read_export`."""
    export_llava(source, folder)
    image_id = json.loads((folder / "config.json").read_text())["image_token_index"]
    expected = Path(f"{folder}.expected")
    expected.mkdir()
    names, answers = [], []
    for number, (question, own) in enumerate(zip(QUESTIONS, sizes, strict=True)):
        images = images_of(own)
        names.append([f"{number}-{i}.png" for i in range(len(images))])
        for name, image in zip(names[-1], images, strict=True):
            image.save(expected / name)
        np.savez(expected / f"{number}.npz", **computed(source, question, images, image_id))
        answers.append(source.chat(images or None, question, max_new_tokens=COUNT))
    told = dict(questions=QUESTIONS, images=names, answers=answers, count=COUNT)
    (expected / "expected.json").write_text(json.dumps(told), encoding="utf-8")
