"""Runs whose products are in 8-bit floating point, emulated on the CPU."""

import shutil
from pathlib import Path

import pytest
import torch
from parallel_helpers import held, launch, losses, make_config, train
from torch import nn

import asvr
from asvr.flops.memory import plan_memory
from asvr.recipe.config import load_config
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe

pytest.importorskip("torchao.float8", reason="torchao is not installed")
FLOAT8 = dict(type="Float8", layers=["llm.*.layers", "llm.*.lm_head"], emulate=True)
OPTIONS = {
    "stages.finetune.model_transforms": [FLOAT8],
    "stages.finetune.evaluation": None,
    "stages.later": dict(train=["projector"], schedule=dict(steps=1), evaluation=None),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_config(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def done(config, tmp_path_factory) -> Path:
    work_dir = tmp_path_factory.mktemp("run") / "float8"
    train(config, work_dir, OPTIONS)
    return work_dir


def test_a_run_goes_on_bit_for_bit(done, config, tmp_path):
    copy = shutil.copytree(done, tmp_path / "copy")
    (copy / "finetune" / "done.json").unlink()
    shutil.rmtree(copy / "finetune" / "checkpoints" / "step_00000004")
    train(config, copy, OPTIONS, only="finetune")
    assert "goes on from step 2 of 4" in (copy / "train.log").read_text()
    torch.testing.assert_close(held(copy, "finetune"), held(done, "finetune"), rtol=0, atol=0)


def test_training_is_rounded_and_near_what_it_is_without(done, config, tmp_path):
    train(config, tmp_path / "plain", OPTIONS | {"stages.finetune.model_transforms": None}, only=None)
    own, other = ([line["loss"] for line in losses(run)] for run in (done, tmp_path / "plain"))
    assert own[:2] == other[:2]  # of the stage before
    assert own[2:6] != other[2:6] and own == pytest.approx(other, rel=0.02)


def test_a_later_stage_and_a_loaded_model_have_plain_layers(done):
    weights = held(done, "finetune")
    model = asvr.load(done, stage="finetune").model
    assert {type(layer) for layer in model.llm.modules() if isinstance(layer, nn.Linear)} == {nn.Linear}
    assert all(torch.equal(weights[f"llm.{key}"], value) for key, value in model.llm.state_dict().items())
    later = {key: value for key, value in held(done, "later").items() if key.startswith("llm.")}
    assert later and all(torch.equal(weights[key], value) for key, value in later.items())


def test_two_processes_train_as_one_does(done, config, tmp_path):
    kinds = ("DDP", "FSDP2")
    runs = [
        dict(config=str(config), work_dir=str(tmp_path / kind), options=OPTIONS | {"parallel": dict(type=kind)})
        for kind in kinds
    ]
    launch(tmp_path, runs, 2)
    expected = [line["loss"] for line in losses(done)]
    for kind in kinds:
        assert [line["loss"] for line in losses(tmp_path / kind)] == pytest.approx(expected, rel=2e-3), kind


def test_a_device_that_cannot_is_told_before_anything_is_done(config, tmp_path):
    layers = ["llm.*.self_attn"]  # whose sizes fit
    options = OPTIONS | {"stages.finetune.model_transforms": [dict(type="Float8", layers=layers)]}
    with pytest.raises(ValueError, match="Float8 with recipe='rowwise' needs a CUDA device .* runtime.device is cpu"):
        train(config, tmp_path / "run", options)
    assert not (tmp_path / "run").exists()


def test_the_memory_plan_has_the_same_states(config):
    plain, float8 = (
        Recipe(load_config(config, options)).stages["finetune"]
        for options in ({}, {"stages.finetune.model_transforms": [FLOAT8]})
    )
    plans = [plan_memory(stage, build_meta(stage)) for stage in (plain, float8)]
    assert plans[0].states == plans[1].states
