"""Profiles of chosen steps: what is written, and that training stays the same."""

import json
from pathlib import Path

import pytest
import torch
from parallel_helpers import make_config, train
from run_helpers import read_metrics

from asvr.base.ranges import named_range
from asvr.recipe.recipe import load_recipe

PROFILE = "runtime.profile"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_config(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def plain(config, tmp_path_factory) -> Path:
    return run(config, tmp_path_factory.mktemp("plain") / "run", {})


@pytest.fixture(scope="module")
def profiled(config, tmp_path_factory) -> Path:
    return run(config, tmp_path_factory.mktemp("profiled") / "run", {PROFILE: dict(steps=(2, 3), memory=True)})


def run(config: Path, work_dir: Path, options: dict) -> Path:
    train(config, work_dir, {"evaluation": None, "stages.pretrain.schedule.steps": 1, **options})
    return work_dir


def events(work_dir: Path) -> list[dict]:
    return json.loads((work_dir / "finetune" / "profile" / "trace_rank0.json").read_text())["traceEvents"]


def within(event: dict, other: dict) -> bool:
    return other["ts"] <= event["ts"] and event["ts"] + event["dur"] <= other["ts"] + other["dur"]


def test_the_trace_has_the_steps_and_their_phases(profiled):
    found = [event for event in events(profiled) if event.get("cat") == "user_annotation"]
    steps = [event for event in found if event["name"].startswith("step_")]
    assert [step["name"] for step in steps] == ["step_2", "step_3"]
    for step in steps:
        names = {event["name"] for event in found if within(event, step)}
        assert {
            "forward",
            "encoder",
            "projector",
            "llm",
            "text_loss",
            "target_semantic",
            "backward",
            "optimizer",
        } <= names
    assert any(event["name"] == "data" for event in found)
    assert any(event["name"] == "aten::addmm" or event["name"] == "aten::mm" for event in events(profiled))


def test_the_table_has_operations_and_phases(profiled):
    table = (profiled / "finetune" / "profile" / "table_rank0.txt").read_text()
    assert "Self CPU" in table and "aten::" in table and "optimizer" in table


def test_training_is_the_same_to_the_last_bit(profiled, plain):
    losses = [[line["loss"] for line in read_metrics(work_dir)] for work_dir in (profiled, plain)]
    assert losses[0] == losses[1] and len(losses[0]) == 5
    file = "finetune/checkpoints/step_00000004/model.safetensors"
    assert (profiled / file).read_bytes() == (plain / file).read_bytes()


def test_the_log_says_where_the_profile_is_and_what_was_left_out(profiled):
    log = (profiled / "train.log").read_text()
    assert "profile of steps 2 to 3: " in log and "trace_rank0.json, open it at https://ui.perfetto.dev" in log
    assert "runtime.profile.memory is ignored on cpu: only CUDA has memory snapshots" in log
    assert "runtime.profile.steps=(2, 3): stage pretrain now trains only the steps 1 to 1, so it is not profiled" in log
    assert not (profiled / "pretrain" / "profile").exists()
    assert not list(profiled.rglob("*.pickle"))


def test_the_first_step_may_be_profiled(config, profiled, tmp_path):
    train(config, tmp_path / "run", {"evaluation": None, PROFILE: dict(steps=(1, 1))}, only="pretrain")
    trace = json.loads((tmp_path / "run" / "pretrain" / "profile" / "trace_rank0.json").read_text())
    steps = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    assert [name for name in steps if name.startswith("step_")] == ["step_1"]


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(steps=(0, 3)), "runtime.profile.steps=.*expected the first and the last step to profile"),
        (dict(steps=(5, 3)), "runtime.profile.steps=.*expected the first and the last step to profile"),
        (dict(memory=True), "runtime.profile.steps is missing"),
        (dict(steps=(1, 2), stack=True), "runtime.profile.stack: unknown field"),
        ((10, 13), r"runtime.profile=.*expected dict\(steps=\(FIRST, LAST\)\), or None"),
    ],
)
def test_a_wrong_profile_is_told_before_anything_is_built(config, given, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(config, {PROFILE: given})


def test_a_named_range_does_nothing_without_a_profiler():
    assert not isinstance(named_range("x"), torch.profiler.record_function)
    with torch.profiler.profile() as profiler, named_range("x"):
        pass
    assert [event.name for event in profiler.events()] == ["x"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_memory_snapshot_is_written_on_cuda(config, tmp_path):
    options = {"evaluation": None, "runtime.device": "cuda", PROFILE: dict(steps=(2, 2), memory=True)}
    train(config, tmp_path / "run", options, only="pretrain")
    folder = tmp_path / "run" / "pretrain" / "profile"
    assert (folder / "memory_rank0.pickle").stat().st_size > 1000
    assert "Self CUDA" in (folder / "table_rank0.txt").read_text()
