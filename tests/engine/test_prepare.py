"""Stages that bring images to the encoder's size in different ways: each has caches of its own."""

import re
from pathlib import Path

import pytest
import torch
from recipe_helpers import make_data, make_zoo, options
from run_helpers import ROOT, call_tool, read_metrics

from asvr.data.images import open_image
from asvr.engine.codes import distinct_targets
from asvr.engine.prepare import prepare
from asvr.engine.run import run
from asvr.engine.stages import load_stage
from asvr.recipe.config import load_config
from asvr.recipe.recipe import Recipe, load_recipe
from asvr.registry import TEXT_TOKENIZERS

CONFIG = ROOT / "configs" / "asvr_vicuna7b.py"  # square in pretrain, pad in finetune
ASPECTS = dict(pretrain="square", finetune="pad")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def use_zoo(zoo, monkeypatch, quick):
    monkeypatch.setenv("ASVR_MODEL_ZOO", str(zoo))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def online(zoo, data, tmp_path_factory) -> list[dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASVR_MODEL_ZOO", str(zoo))
        return train(data, tmp_path_factory.mktemp("online") / "run", {})


def train(data: Path, work_dir: Path, changes: dict) -> list[dict]:
    """Train the recipe at tiny size. Returns the losses and metrics of each step."""
    run(load_config(CONFIG, options(data, ["semantic"]) | changes), work_dir)
    kept = ("stage", "step", "grad_norm")
    return [
        {key: value for key, value in line.items() if key in kept or re.match("loss|text|semantic", key)}
        for line in read_metrics(work_dir)
    ]


def contents(cache: Path) -> dict[str, tuple[int, bytes]]:
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in cache.rglob("*") if file.is_file()}


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


@pytest.mark.parametrize("cache", [True, "codes"])
def test_each_stage_reads_its_own_images_in_its_own_shape(cache, data, tmp_path):
    recipe = Recipe(load_config(CONFIG, options(data, ["semantic"]) | {"data.cache": cache}))
    prepared = prepare(recipe, tmp_path / "run", text_tokenizer := TEXT_TOKENIZERS.build(recipe.text_tokenizer))
    wide, rows = str(data / "3.png"), {}
    for name, images in (("pretrain", range(6)), ("finetune", range(4))):
        stage = recipe.stages[name]
        own = prepared.cache(stage)
        keys = own.rows if cache is True else own.hashes
        assert {Path(key).name for key in keys} == {f"{i}.png" for i in images}
        (key,) = (key for key in keys if Path(key).name == "3.png")
        run(recipe.config, tmp_path / "run", only=name)
        model = load_stage(recipe, name, prepared, tmp_path / "run")
        tokenizer = model.tokenizers["semantic"]
        pixels = tokenizer.transform(open_image(wide), ASPECTS[name])[None]
        rows[name] = own.truth("semantic", [key])["codes"].long()
        with torch.no_grad():
            assert torch.equal(rows[name], tokenizer.encode(pixels))
    assert not torch.equal(rows["pretrain"], rows["finetune"])
    assert text_tokenizer.num_ids


def test_codes_computed_ahead_serve_all_stages(online, data, tmp_path):
    values = [f"{key}={value}" for key, value in options(data, ["semantic"]).items()]
    for shard in ("0/2", "1/2"):
        done = call_tool(
            "tools/cache_codes.py", CONFIG, "--out", tmp_path / "codes", "--shard", shard, "--cfg-options", *values
        )
        assert done.returncode == 0, done.stderr
        for aspect, count in (("square", 6), ("pad", 4)):
            assert re.search(
                f"codes of semantic with image_aspect='{aspect}': \\d of {count} images", done.stdout + done.stderr
            )
    assert len(list((tmp_path / "codes").glob("semantic-*"))) == 2
    before = contents(tmp_path / "codes")
    found = train(data, tmp_path / "run", {"data.cache": "codes", "data.cache_dir": str(tmp_path / "codes")})
    assert found == online
    log = (tmp_path / "run" / "train.log").read_text()
    assert len(re.findall(r"codes of semantic with image_aspect='\w+': all \d images are in", log)) == 2
    assert {key: value for key, value in contents(tmp_path / "codes").items() if key in before} == before


def test_a_tokenizer_is_not_fitted_on_images_of_two_shapes(data, tmp_path):
    changes = {
        "data.cache": True,
        "model.reconstruction.0.tokenizer": dict(type="SemanticTokenizer", depth=2, codebook_size=8),
        "model.reconstruction.0.fit": dict(iterations=2),
    }
    with pytest.raises(
        ValueError, match=r"'semantic' has `fit`, and data.image_aspect differs .*'square', 'pad'.*asvr train-tokenizer"
    ):
        run(load_config(CONFIG, options(data, ["semantic"]) | changes), tmp_path)


def test_the_recipes_of_llava_may_cache_codes():
    recipe = load_recipe(CONFIG, {"data.cache": "codes"})
    assert list(distinct_targets(recipe)) == ["semantic"]
    groups = recipe.by_image_aspect()
    assert {aspect: list(group.stages) for aspect, group in groups.items()} == dict(square=["pretrain"], pad=["finetune"])
    same = load_recipe(CONFIG, {"stages.finetune.data.image_aspect": "square"}).by_image_aspect()
    assert {aspect: list(group.stages) for aspect, group in same.items()} == dict(square=["pretrain", "finetune"])
