"""Reads exported folders with the transformers that is first on PYTHONPATH, and compares. A program of its own.

``python read_export.py FOLDER ...`` prints one JSON line for each folder. What this library computes lies beside it in
``<folder>.expected``, which `export_helpers.write_expected` wrote. Nothing of asvr is imported here: the transformers
may be older than asvr takes.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image


def processor_of(folder: Path):
    old = transformers.__version__.startswith("4.")
    return transformers.AutoProcessor.from_pretrained(folder, **(dict(use_fast=False) if old else dict(backend="pil")))


def as_chat(question: str, images: list) -> list[dict]:
    return [dict(role="user", content=[*[dict(type="image")] * len(images), dict(type="text", text=question)])]


def prompt(processor, question: str, images: list) -> str:
    return processor.apply_chat_template(as_chat(question, images), add_generation_prompt=True)


def inputs_of(processor, questions: list[str], images: list[list], **kwargs):
    texts = [prompt(processor, *pair) for pair in zip(questions, images, strict=True)]
    flat = [image for own in images for image in own] or None
    return processor(text=texts, images=flat, return_tensors="pt", **kwargs)


def answers(model, processor, inputs, count: int) -> list[str]:
    written = model.generate(**inputs, max_new_tokens=count)[:, inputs["input_ids"].shape[1] :]
    return [processor.tokenizer.decode(row, skip_special_tokens=True).strip() for row in written]


@torch.no_grad()
def compare(folder: Path) -> dict:
    expected = Path(f"{folder}.expected")
    told = json.loads((expected / "expected.json").read_text(encoding="utf-8"))
    images = [[Image.open(expected / name) for name in names] for names in told["images"]]
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    processor = processor_of(folder)
    model, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    model.eval()
    found = dict(ids=True, pixels=True, logits=0.0, answers=True, keys=[])
    # SigLIP's pooling head gives nothing to a patch, and some versions miss it.
    found["keys"] = [key for kind in info.values() for key in kind if ".head." not in str(key)]
    for number, question in enumerate(told["questions"]):
        inputs = inputs_of(processor, [question], [images[number]])
        ours = dict(np.load(expected / f"{number}.npz"))
        found["ids"] &= inputs["input_ids"][0].tolist() == ours["ids"].tolist()
        if not found["ids"]:
            return found
        if images[number]:
            pixels = inputs["pixel_values"]
            if pixels.ndim == 5:  # tiles, padded to the most that an image has
                counts = ours["crops"].tolist()
                pixels = torch.cat([own[:count] for own, count in zip(pixels, counts, strict=True)])
            found["pixels"] &= np.array_equal(pixels.numpy(), ours["pixels"])
        logits = model(**inputs).logits[0, :, : ours["logits"].shape[1]].float().numpy()
        found["logits"] = max(found["logits"], float(np.abs(logits - ours["logits"]).max() / np.abs(logits).max()))
        found["answers"] &= answers(model, processor, inputs, told["count"]) == [told["answers"][number]]
    together = inputs_of(processor, told["questions"], images, padding=True)
    found["batched"] = answers(model, processor, together, told["count"]) == told["answers"]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for name in sys.argv[1:]:
        try:
            found = compare(Path(name))
        except Exception as error:  # told, and the next folder is read
            found = dict(error=f"{type(error).__name__}: {error}")
        print(json.dumps(dict(folder=Path(name).name, version=transformers.__version__, **found)), flush=True)
