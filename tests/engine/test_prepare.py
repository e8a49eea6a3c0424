"""Stages that bring images to the encoder's size in different ways: each has caches of its own."""

import random
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from recipe_helpers import SIGLIP, make_data, make_zoo, options
from run_helpers import ROOT, read_metrics

from asvr.data.images import open_image
from asvr.engine.codes import distinct_targets
from asvr.engine.codes import run_config as cache_codes
from asvr.engine.prepare import prepare
from asvr.engine.run import run
from asvr.engine.stages import load_stage
from asvr.recipe.config import load_config
from asvr.recipe.recipe import Recipe, load_recipe
from asvr.registry import TEXT_TOKENIZERS

CONFIG = ROOT / "configs" / "asvr_vicuna7b.py"
OWN = dict(type="HFVisionEncoder", name=SIGLIP, layer=-2)
ASPECTS = dict(pretrain="square", finetune="pad")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo"), "float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Images of noise, so that their codes depend on every pixel."""
    folder = make_data(tmp_path_factory.mktemp("data"))
    for i in range(6):
        size = (20 + 10 * i, 30)
        Image.frombytes("RGB", size, random.Random(i).randbytes(3 * size[0] * size[1])).save(folder / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def use_zoo(zoo, monkeypatch, quick):
    monkeypatch.setenv("ASVR_MODEL_ZOO", str(zoo))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def online(zoo, data, tmp_path_factory) -> list[dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASVR_MODEL_ZOO", str(zoo))
        return train(data, tmp_path_factory.mktemp("online") / "run", {})


def changed(data: Path, changes: dict) -> dict:
    """Options that make the recipe tiny and exact: in bfloat16, losses depend on how many images are computed at
    once."""
    exact = {"model.encoder.dtype": "float32", "optim.precision": "float32"}
    return options(data, ["semantic"]) | exact | {"stages.pretrain.model.llm.dtype": "float32"} | changes


def train(data: Path, work_dir: Path, changes: dict) -> list[dict]:
    """Train the recipe at tiny size. Returns the losses and metrics of each step."""
    run(load_config(CONFIG, changed(data, changes)), work_dir)
    kept = ("stage", "step", "grad_norm")
    return [
        {key: value for key, value in line.items() if key in kept or re.match("loss|text|semantic", key)}
        for line in read_metrics(work_dir)
    ]


def contents(cache: Path) -> dict[str, tuple[int, bytes]]:
    """Of the files of all caches in a folder."""
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in cache.glob("*/*")}


@pytest.mark.parametrize("cache", [True, "codes"])
def test_cached_losses_are_those_computed_online(cache, online, data, tmp_path):
    changes = {"data.cache": cache, "data.cache_dir": str(tmp_path / "cache")}
    found = train(data, tmp_path / "first", changes)
    assert {line["stage"] for line in found} == ASPECTS.keys() and len(found) == len(online)
    for own, expected in zip(found, online, strict=True):
        assert own == pytest.approx(expected, abs=1e-5)
    before = contents(tmp_path / "cache")
    assert train(data, tmp_path / "second", changes) == found
    assert contents(tmp_path / "cache") == before  # nothing is computed again


@pytest.mark.parametrize(("cache", "encoder"), [(True, None), (True, OWN), ("codes", None), ("codes", OWN)])
def test_each_stage_reads_its_own_images_in_its_own_shape(cache, encoder, data, tmp_path):
    """encoder: of the tokenizer, which then opens the images itself."""
    changes = {"data.cache": cache} | ({"model.reconstruction.0.tokenizer.encoder": encoder} if encoder else {})
    recipe = Recipe(load_config(CONFIG, changed(data, changes)))
    prepared, rows = prepare(recipe, tmp_path / "run", TEXT_TOKENIZERS.build(recipe.text_tokenizer)), {}
    for name, images in (("pretrain", range(6)), ("finetune", range(4))):
        stage = recipe.stages[name]
        own = prepared.cache(stage)
        keys = own.rows if cache is True else own.hashes
        assert {Path(key).name for key in keys} == {f"{i}.png" for i in images}
        (key,) = (key for key in keys if Path(key).name == "3.png")
        run(recipe.config, tmp_path / "run", only=name)
        model = load_stage(recipe, name, prepared, tmp_path / "run")
        tokenizer = model.tokenizers["semantic"]
        pixels = tokenizer.transform(open_image(str(data / "3.png")), ASPECTS[name])[None]
        rows[name] = own.truth("semantic", [key])["codes"].long()
        with torch.no_grad():
            assert torch.equal(rows[name], tokenizer.encode(pixels))
    assert not torch.equal(rows["pretrain"], rows["finetune"])


def test_codes_computed_ahead_serve_all_stages(online, data, tmp_path):
    for i in range(2):
        own = dict(workers=None, cfg_options=changed(data, {}))
        cache_codes(str(CONFIG), out=tmp_path / "codes", shard=f"{i}/2", **own)
        log = (tmp_path / "codes" / f"cache_codes.{i}-of-2.log").read_text()
        for aspect, count in (("square", 6), ("pad", 4)):
            assert re.search(f"codes of semantic with image_aspect='{aspect}': \\d of {count} images are missing", log)
    assert len(list((tmp_path / "codes").glob("semantic-*"))) == 2
    before = contents(tmp_path / "codes")
    found = train(data, tmp_path / "run", {"data.cache": "codes", "data.cache_dir": str(tmp_path / "codes")})
    assert found == online
    log = (tmp_path / "run" / "train.log").read_text()
    assert len(re.findall(r"codes of semantic with image_aspect='\w+': all \d images are in", log)) == 2
    assert contents(tmp_path / "codes") == before


def test_a_tokenizer_is_not_fitted_on_images_of_two_shapes(data, tmp_path):
    changes = {
        "data.cache": True,
        "model.reconstruction.0.tokenizer": dict(type="SemanticTokenizer", depth=2, codebook_size=8),
        "model.reconstruction.0.fit": dict(iterations=2),
    }
    with pytest.raises(
        ValueError, match=r"'semantic' has `fit`, and data.image_aspect differs .*'square', 'pad'.*asvr train-tokenizer"
    ):
        run(load_config(CONFIG, changed(data, changes)), tmp_path)


def test_the_recipes_of_llava_may_cache_codes():
    recipe = load_recipe(CONFIG, {"data.cache": "codes"})
    assert list(distinct_targets(recipe)) == ["semantic"]
    groups = {aspect: list(group.stages) for aspect, group in recipe.by_image_aspect().items()}
    assert groups == dict(square=["pretrain"], pad=["finetune"])
    same = load_recipe(CONFIG, {"stages.finetune.data.image_aspect": "square"}).by_image_aspect()
    assert list(same["square"].stages) == ["pretrain", "finetune"] and len(same) == 1
