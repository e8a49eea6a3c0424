"""The cost table of the methods: what is counted is what one counts by hand, and every recipe has a row."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from method_helpers import TINY as TINY_SCENES
from run_helpers import ROOT
from test_throughput import TINY

from asvr.flops.count import Sample
from asvr.flops.memory import plan_memory
from asvr.profiling import method_costs
from asvr.profiling.method_costs import compare_methods
from asvr.profiling.method_table import COLUMNS, markdown
from asvr.profiling.method_times import time_method
from asvr.profiling.methods import count_method, method_configs, without_targets
from asvr.profiling.report import flops_report
from asvr.recipe.config import load_config
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe

RECIPES, SCENES = (ROOT / "configs" / "targets" / folder for folder in ("vicuna7b", "scenes"))
RESULT = ROOT / "benchmarks" / "results" / "methods"
# The tiny 7B: 16 visual tokens (N) of 16 features, an LLM of width 32 (H), 48 inside (F), 2 layers; 128 text tokens.
N, E, H, F, LAYERS, T = 16, 16, 32, 48, 2, 16 + 128
BLOCKS = LAYERS * (8 * T * H * H + 6 * T * H * F + 4 * T * T * H)
BYTES = 4 + 4 + 8  # of a trained float32 parameter: itself, its gradient, AdamW's moments


def mlp(*widths: int) -> tuple[int, int]:
    """FLOPs of a row, and parameters, of linear layers."""
    pairs = list(pairwise(widths))
    return sum(2 * a * b for a, b in pairs), sum(a * b + b for a, b in pairs)


def count(name: str, **options) -> dict:
    sizes = {key: value for key, value in TINY.items() if "vocab_size" not in key}
    return count_method(RECIPES / f"{name}.py", Sample(), sizes | options)


def extra(stage: dict, way: str = "online") -> float:
    """FLOPs."""
    return stage[f"flops_{way}"] / 100 * stage["base"]["online"]


def test_a_head_on_the_encoders_features_in_finetune_alone():
    found = count("metamorph")
    stage, (flops, parameters) = found["stages"]["finetune"], mlp(H, H, H, E)
    assert found["stages"]["pretrain"] is None and found["cache_bytes"] is None
    assert extra(stage) == pytest.approx(3 * N * flops) == pytest.approx(extra(stage, "cached"))
    assert stage["trained"] == stage["held"] == parameters and stage["states"] == BYTES * parameters
    assert stage["activations"] > 0 and stage["checkpointing"] == "full"
    assert found["reconstructs"] == "the encoder's 16 features"


def test_an_average_of_the_projector_is_held_and_not_trained():
    stage = count("gas", **{"stages.finetune.model.reconstruction.0.tap": 1})["stages"]["finetune"]
    (head, of_head), (projector, of_projector) = mlp(H, H, H), mlp(E, H, H)
    assert stage["trained"] == of_head and stage["held"] == of_head + of_projector
    assert stage["states"] == BYTES * of_head + 4 * of_projector
    assert extra(stage) == pytest.approx(3 * N * head + N * projector)


def test_a_pass_of_the_llm_that_is_trained_and_one_that_is_not():
    """LaVer. With full checkpointing the trained pass is computed twice, but for the last product of each block."""
    stage = count("laver", **{"stages.finetune.model.reconstruction.0.mlp.width": 8})["stages"]["finetune"]
    (flops, parameters), last = mlp(H, 8, 8, H), LAYERS * 2 * T * H * F
    gram = 2 * 2 * N * N * H
    assert extra(stage) == pytest.approx(BLOCKS + 4 * BLOCKS - last + 3 * (N * flops + gram))
    assert stage["trained"] == parameters + H  # and the mask token
    llm = stage["base"]["trained"] - mlp(E, H, H)[1]
    averages = llm + parameters  # of LLM and head
    assert 0 < stage["held"] - stage["trained"] - averages < 4 * H  # the centre of the outputs, and frequencies
    assert stage["states"] > 4 * llm


def test_masked_images_in_pretrain_alone_take_no_further_pass():
    """JARVIS. Of the blocks of an image as many tokens are told as a fixed draw has, in `share` of the images."""
    key = "stages.pretrain.model.reconstruction.0"
    small = {f"{key}.tap": 1, f"{key}.teacher.arch.num_hidden_layers": 1, f"{key}.masks.min_context": 1}
    found = count("jarvis", **small)
    stage, (flops, parameters) = found["stages"]["pretrain"], mlp(H, H, 1024)
    assert found["stages"]["finetune"] is None and found["cache_bytes"] == N * 1024 * 2
    told = extra(stage, "cached") / (3 * 0.8 * flops)
    assert told == pytest.approx(round(told)) and 4 <= round(told) <= 4 * N
    assert stage["trained"] == parameters + H
    teacher = stage["held"] - stage["trained"]
    assert teacher > 12 * 1024**2 and stage["states"] == pytest.approx(BYTES * stage["trained"] + 2 * teacher, rel=1e-3)
    assert extra(stage) - extra(stage, "cached") > 2 * 37 * 37 * 12 * 1024**2  # the teacher's products, once
    before = torch.get_rng_state()
    assert count("jarvis", **small) == found and torch.equal(torch.get_rng_state(), before)


def test_a_method_with_adapters_is_compared_with_adapters():
    key = "stages.finetune.model.reconstruction.0"
    stage = count("viral", **{f"{key}.tap": 1, f"{key}.teacher.arch.num_hidden_layers": 1})["stages"]["finetune"]
    (_, parameters) = mlp(H, 2048, 2048, 768)
    assert stage["trained"] == parameters
    adapters = LAYERS * 128 * (4 * 2 * H + 3 * (H + F))  # of rank 128, on seven layers of a block
    assert stage["base"]["trained"] == adapters + mlp(E, H, H)[1]


def test_the_7b_figures_of_asvr_are_those_of_the_flops_report():
    path = RECIPES / "asvr.py"
    found, (own, base) = count_method(path, Sample()), (load_config(path), load_config(path, without_targets(path)))
    reports = [flops_report(cfg, Sample())["training"] for cfg in (own, base)]
    assert not any(stage.model.reconstruction for stage in Recipe(base).stages.values())
    for name, stage in found["stages"].items():
        for way in ("online", "cached"):
            assert stage[f"flops_{way}"] == pytest.approx(100 * (reports[0][name][way] / reports[1][name][way] - 1))
    plans = [plan_memory(recipe.last, build_meta(recipe.last)) for recipe in (Recipe(own), Recipe(base))]
    added = found["stages"]["finetune"]
    assert added["states"] + added["activations"] == plans[0].total - plans[1].total
    assert found["cache_bytes"] == 729 * 8 * 2


@pytest.mark.parametrize(("name", "stage"), [("jarvis", "pretrain"), ("laver", "finetune")])
def test_the_time_of_a_step_in_the_stage_that_has_the_target(name, stage, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = time_method(SCENES / f"{name}.py", rounds=3, options=TINY_SCENES, samples=2)
    assert (found["stage"], found["samples"], found["rounds"]) == (stage, 2, 3)
    assert "cached codes, cached features" in found["how"]
    for by in ("clock", "processor"):
        (low, high), (least, most) = found[by]["quartiles"], found[by]["least_and_most"]
        assert 0 < least <= low <= found[by]["ratio"] <= high <= most
        assert all(seconds > 0 for seconds in found[by]["seconds"].values())
    assert found["extra_flops"] > (50 if name == "laver" else 0)


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    sizes = {key: value for key, value in TINY.items() if "vocab_size" not in key}
    found = {}
    for folder, recipe, options in (("counted", RECIPES / "vdep.py", sizes), ("timed", SCENES / "vdep.py", {})):
        found[folder] = tmp_path / folder
        found[folder].mkdir()
        cfg = load_config(recipe, options)
        cfg.dump(found[folder] / "vdep.py")
        (found[folder] / "_base.py").write_text("")
    return found


def test_times_are_kept_and_written_as_they_come(folders, tmp_path, monkeypatch):
    measured = json.loads(RESULT.with_suffix(".json").read_text())["methods"]["asvr"]["time"]
    asked = []
    monkeypatch.setattr(method_costs, "time_method", lambda path, rounds: asked.append(path.stem) or measured)
    out = tmp_path / "out" / "methods"
    text = compare_methods(**folders, out=out, rounds=5)
    assert asked == ["vdep"] and out.with_suffix(".md").read_text() == text and "| vdep | embeddings of the" in text
    assert out.with_suffix(".png").stat().st_size > 1000
    assert compare_methods(**folders, out=out, rounds=5, keep_times=True) == text and asked == ["vdep"]
    compare_methods(**folders, out=out, rounds=5)
    assert asked == ["vdep"] * 2
    with pytest.raises(ValueError, match="--rounds 1: expected at least 2"):
        compare_methods(**folders, out=out, rounds=1)
    with pytest.raises(ValueError, match="--timed .*out: there is no config in it"):
        compare_methods(**folders | dict(timed=tmp_path / "out"), out=out, rounds=2)


def test_every_recipe_has_a_row():
    """Otherwise: ``python benchmarks/methods.py --out benchmarks/results/methods --keep-times``."""
    result = json.loads(RESULT.with_suffix(".json").read_text())
    assert list(result["methods"]) == list(method_configs(RECIPES))
    timed = {name for name, method in result["methods"].items() if method["time"]}
    assert timed == set(method_configs(SCENES)) & set(result["methods"])
    text = RESULT.with_suffix(".md").read_text()
    assert text == markdown(result) and RESULT.with_suffix(".png").is_file()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(result["methods"]) and all(row.count(" | ") == len(COLUMNS) - 1 for row in rows)
    assert str(Path.home()) not in json.dumps(result) and str(ROOT) not in json.dumps(result)


def test_the_rows_are_of_the_recipes_as_they_are():
    """The cheap part of each count, which changes with a recipe."""
    methods = json.loads(RESULT.with_suffix(".json").read_text())["methods"]
    for name, path in method_configs(RECIPES).items():
        recipe = Recipe(load_config(path))
        for stage, found in methods[name]["stages"].items():
            if found is not None:
                model = build_meta(recipe.stages[stage])
                trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
                assert trained == found["base"]["trained"] + found["trained"], (name, stage)
