"""Runs on images that are cut into tiles: cached, packed, resumed, shared, evaluated and shown as whole images are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from parallel_helpers import launch, make_config, train
from PIL import Image
from safetensors.torch import load_file

from asvr.data.check import scan
from asvr.demo.maps import answer_attention, target_maps
from asvr.engine.check_data import sources_of_config
from asvr.evaluation.predictions import of_images
from asvr.loading import load
from asvr.profiling.dry_run import dry_run
from asvr.recipe.config import load_config

STEPS = 4
TILES = {
    "model.layout": dict(type="AnyRes", grids=[(1, 2), (2, 2), (2, 1)]),
    "data.max_length": 100,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    config = make_config(folder, positions=128)
    for i in range(9):
        Image.new("RGB", (6 + 3 * i, 20 - 2 * i), (25 * i, 255 - 25 * i, 90)).save(folder / f"{i}.png")
    return config


@pytest.fixture(scope="module")
def done(config, quick, tmp_path_factory) -> Path:
    work_dir = tmp_path_factory.mktemp("run") / "run"
    train(config, work_dir, options())
    return work_dir


def options(changes: dict | None = None) -> dict:
    return TILES | (changes or {})


def losses(work_dir: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["step"], line["loss_text"], line.get("loss_semantic", 1.0)) for line in lines]


def weights(work_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(work_dir / "finetune" / "checkpoints" / f"step_{STEPS:08d}" / "model.safetensors")


def test_a_run_trains_its_newline(done):
    found = losses(done)
    assert len(found) == 6 and all(0 < value < 20 for line in found for value in line[2:])
    newline = weights(done)["separators.weight"]
    first = load_file(done / "pretrain" / "checkpoints" / "step_00000002" / "model.safetensors")["separators.weight"]
    assert newline.shape == (1, 16) and not torch.equal(newline, first)


def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(config, done, tmp_path):
    copy = shutil.copytree(done, tmp_path / "run")
    (copy / "finetune" / "done.json").unlink()
    shutil.rmtree(copy / "finetune" / "checkpoints" / f"step_{STEPS:08d}")
    train(config, copy, options())
    whole, resumed = weights(done), weights(copy)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)


def fitted(done: Path) -> dict:
    """The target with the tokenizer that the cached run has fitted."""
    (folder,) = (done / "tokenizers").iterdir()
    tokenizer = dict(type="SemanticTokenizer", depth=2, codebook_size=4, name=str(folder))
    head = dict(type="DepthTransformerHead", width=8, layers=1, num_heads=2)
    return dict(name="semantic", tokenizer=tokenizer, head=head, weight=0.5, shift=1)


def test_cached_and_online_features_and_codes_give_one_loss(config, done, tmp_path):
    """To rounding: a product of the encoder may depend on how many crops are computed at once."""
    train(config, tmp_path / "online", options({"data.cache": False, "model.reconstruction": [fitted(done)]}))
    for found, wanted in zip(losses(tmp_path / "online"), losses(done), strict=True):
        assert found[:2] == wanted[:2] and found[2:] == pytest.approx(wanted[2:], rel=1e-6)


@pytest.mark.parametrize("how", [{"data.pack": True}, {"data.group": "length"}], ids=["packed", "grouped"])
def test_packed_and_grouped_rows_give_the_same_losses(config, done, tmp_path, how):
    train(config, tmp_path / "run", options(how))
    for found, wanted in zip(losses(tmp_path / "run"), losses(done), strict=True):
        assert found[:2] == wanted[:2] and found[2:] == pytest.approx(wanted[2:], rel=1e-4)


def test_a_stage_on_whole_images_is_followed_by_one_on_tiles(config, done, tmp_path):
    changes = {"data.cache": False, "model.reconstruction": [fitted(done)], "data.max_length": 100}
    changes |= {f"stages.finetune.{key}": value for key, value in TILES.items()}
    train(config, tmp_path / "run", changes)
    own = weights(tmp_path / "run")
    first = load_file(tmp_path / "run/pretrain/checkpoints/step_00000002/model.safetensors")
    assert "separators.weight" in own and "separators.weight" not in first
    assert losses(tmp_path / "run")[0] != losses(done)[0]


def test_codes_of_whole_images_are_not_taken_for_those_of_crops(config, done, tmp_path):
    changes = {"data.cache": "codes", "model.reconstruction": [fitted(done)]}
    with pytest.raises(ValueError, match=r"data.cache='codes'\) keeps those of whole images.*set data.cache=True"):
        train(config, tmp_path / "run", options(changes))


@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
def test_processes_that_share_a_step_learn_the_same(config, done, tmp_path, kind):
    run = dict(config=str(config), work_dir=str(tmp_path / "run"), options=options({"parallel.type": kind}))
    launch(tmp_path, [run], world=2)
    for found, wanted in zip(losses(tmp_path / "run"), losses(done), strict=True):
        assert found[2:] == pytest.approx(wanted[2:], rel=1e-4)


def test_questions_are_asked_and_codes_counted_by_image(done):
    results = json.loads((done / "results.json").read_text())
    own = results.get("stages", results)["finetune"]
    assert own["total"] == 5 and own["refused"] == 0
    assert len(own["codes"]["semantic"]) == 2 and all(0 <= share <= 1 for share in own["codes"]["semantic"])
    assert np.shape(own["codes_by_place"]["semantic"]) == (2, 2)


def test_an_image_counts_once_however_many_crops_it_has():
    nan = float("nan")
    values_IND = torch.tensor([[1.0, 1.0], [0.0, nan], [1.0, 0.0]])[..., None]  # of two crops, and of one
    assert of_images(values_IND, [2, 1]).flatten().tolist() == pytest.approx([2 / 3, 1 / 2])
    assert of_images(values_IND, [1, 1, 1]).flatten().tolist() == [1, 0, 0.5]


def test_a_saved_model_answers_as_the_run_does(done, tmp_path):
    own = load(done, device="cpu")
    again = load(own.save_pretrained(tmp_path / "model"), device="cpu")
    image = Image.new("RGB", (30, 9), (200, 30, 30))
    asked = [dict(images=[image], messages=[{"from": "human", "value": "<image>\nwhat is 3?"}])]
    assert own.generate(asked, max_new_tokens=3) == again.generate(asked, max_new_tokens=3)
    (shown,) = target_maps(again, image)
    assert shown.right_RCD.shape == (2, 2, 2)
    talk = [*asked[0]["messages"], {"from": "gpt", "value": "word"}]
    assert answer_attention(again, [image], talk).shape == (2, 2, 2)


def test_a_dry_run_counts_the_largest_image(config):
    text = dry_run(load_config(config, options()))
    assert "not counted" not in text and "not planned" not in text
    assert "AnyRes" in text and "up to 5 crops" in text and "up to 24" in text  # 4 + 16, and 4 newlines


def test_check_data_counts_the_tokens_of_each_image(config, tmp_path):
    source = next(source for source in sources_of_config(config, None, options()) if "train" in source.name)
    with (tmp_path / "report.jsonl").open("w") as report:
        found, _ = scan(source, report=report, workers=0)
    whole = next(source for source in sources_of_config(config, None, {}) if "train" in source.name)
    with (tmp_path / "whole.jsonl").open("w") as report:
        fewer, _ = scan(whole, report=report, workers=0)
    assert not found.refused and max(found.tokens) > max(fewer.tokens)


def test_a_row_that_does_not_hold_its_tiles_is_told(config, tmp_path):
    with pytest.raises(ValueError, match=r"data.max_length=25 .*an image alone takes up to 24 tokens"):
        train(config, tmp_path / "run", options({"data.max_length": 25}))


def test_padding_that_would_do_nothing_is_told(config, tmp_path):
    with pytest.raises(ValueError, match=r"data.image_aspect='pad' .*has no effect with AnyRes: set it to 'square'"):
        train(config, tmp_path / "run", options({"data.image_aspect": "pad"}))


def test_fields_of_a_layout_are_checked(config, tmp_path):
    with pytest.raises(ValueError, match=r"model\.layout\.grid: AnyRes has no such field; did you mean 'grids'"):
        train(config, tmp_path / "run", options({"model.layout": dict(type="AnyRes", grid=[(1, 2)])}))
