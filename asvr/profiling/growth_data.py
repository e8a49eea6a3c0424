"""How the preparation of a cache of codes grows with the number of images."""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from asvr.base.text import table
from asvr.engine.codes import code_caches
from asvr.models.tokenizers import SemanticTokenizer
from asvr.profiling.growth import exponents
from asvr.profiling.synthetic import SyntheticSamples
from asvr.profiling.worker import random_model
from asvr.recipe.config import load_config
from asvr.recipe.recipe import Recipe

DATA = "images"


def caches(path: Path, counts: list[int], fixed: dict | None = None) -> dict:
    """Compute the codes of data sets with these numbers of images, with random weights, into a temporary folder.

    path: a config with a `SemanticTokenizer` as its first target. fixed: overrides of it. Each row of the result has
    the seconds, the bytes on disk, and the seconds of opening the complete cache again.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="asvr_growth_") as folder:
        root = Path(folder)
        fixed = (fixed or {}) | {"runtime.device": "cpu"}
        tokenizer = _saved_tokenizer(path, fixed, root / "tokenizer")
        samples = SyntheticSamples(num_image_tokens=1, max_length=64, vocab_size=100, text_only=0)
        (root / "images").mkdir()
        for count in counts:
            for i in range(count):
                file = root / "images" / f"{i}.jpg"
                if not file.is_file():
                    samples.image(i).save(file)
            recipe = _recipe(path, fixed, root, count, tokenizer)
            seconds = []
            for _ in range(2):  # the second finds all codes
                begin = time.perf_counter()
                code_caches(recipe, root / f"cache_{count}", lambda: 32000, workers=0)
                seconds.append(time.perf_counter() - begin)
            size = sum(file.stat().st_size for file in (root / f"cache_{count}").rglob("*") if file.is_file())
            rows.append(dict(size=count, seconds=seconds[0], again=seconds[1], bytes=size))
            print(f"{count} images: {seconds[0]:.3g} s", file=sys.stderr)
    found = {cost: exponents(rows, cost) for cost in ("seconds", "again", "bytes")}
    cells = [
        [f"{row['size']:,}", f"{row['seconds']:.3g}", f"{row['again']:.3g}", f"{row['bytes'] / 1e6:.4g}"]
        for row in rows
    ]
    cells.append(["exponents", *(f"{a:.2f}, {b:.2f}" for a, b in found.values())])
    text = table(["images, measured", "codes computed, s", "opened again, s", "cache, MB"], cells)
    return dict(rows=rows, exponents=found, text=text)


def _saved_tokenizer(path: Path, fixed: dict, folder: Path) -> Path:
    """A tokenizer with random codebooks, as a folder that a config can name."""
    stage = Recipe(load_config(path, fixed)).last
    tokenizer = random_model(stage, torch.device("cpu")).targets[0].tokenizer
    if not isinstance(tokenizer, SemanticTokenizer):
        raise ValueError(f"{path}: the first target has a {type(tokenizer).__name__}: expected a SemanticTokenizer")
    tokenizer.save_pretrained(folder)
    return folder


def _recipe(path: Path, fixed: dict, root: Path, count: int, tokenizer: Path) -> Recipe:
    records = [
        dict(
            id=str(i),
            image=f"{i}.jpg",
            conversations=[{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Noise."}],
        )
        for i in range(count)
    ]
    file = root / f"records_{count}.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    data = dict(type="LlavaDataset", ann_file=str(file), image_folder=str(root / "images"))
    config = load_config(path, fixed | {"data.cache": "codes"})
    for section in (config, *config.stages.values()):
        section.setdefault("data", {}).update(image_aspect="resize", train=data)
    config.model.reconstruction[0].tokenizer.name = str(tokenizer)
    return Recipe(config)
