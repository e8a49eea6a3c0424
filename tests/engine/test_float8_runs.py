"""Runs whose products are in 8-bit floating point, emulated on the CPU."""

import json
from pathlib import Path

import pytest
import torch
from parallel_helpers import held, interrupted, launch, losses, make_config, train
from safetensors.torch import load_file
from torch import nn

import asvr
from asvr.engine import sharded
from asvr.flops.memory import plan_memory
from asvr.recipe.config import load_config
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe

pytest.importorskip("torchao.float8", reason="torchao is not installed")
FLOAT8 = dict(type="Float8", layers=["llm.*.layers", "llm.*.lm_head"], emulate=True)
OPTIONS = {
    "stages.finetune.model_transforms": [FLOAT8],
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
    copy = interrupted(done, tmp_path / "copy")
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


GATHER = dict(fsdp_float8_all_gather=True)
# Settings of Float8, of `parallel` and of the run. Those of "fsdp" and of "gather" must be the same bit for bit.
BY_TWO = {
    "DDP": (dict(), dict(type="DDP"), {}),
    "FSDP2": (dict(), dict(type="FSDP2"), {}),
    "fsdp": (dict(recipe="tensorwise"), dict(type="FSDP2"), {"runtime.ema": dict(decay=0.9, evaluate=True)}),
    "gather": (
        dict(recipe="tensorwise", **GATHER),
        dict(type="FSDP2"),
        {"runtime.ema": dict(decay=0.9, evaluate=True)},
    ),
    "packed": (
        GATHER,
        dict(type="FSDP2", param_dtype="bfloat16", reduce_dtype="float32"),
        {"data.pack": dict(max_tokens=64, max_images=2), "optim.precision": "bf16"},
    ),
}


def options_of(name: str) -> dict:
    own, parallel, more = BY_TWO[name]
    return (
        OPTIONS
        | {"stages.pretrain.evaluation": None}
        | more
        | {"parallel": parallel, "stages.finetune.model_transforms": [FLOAT8 | own]}
    )


@pytest.fixture(scope="module")
def by_two(config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    runs = [dict(config=str(config), work_dir=str(folder / name), options=options_of(name)) for name in BY_TWO]
    launch(folder, runs, 2)
    return folder


def sharded_weights(work_dir: Path) -> dict[str, torch.Tensor]:
    folder = work_dir / "finetune" / "checkpoints" / "step_00000004" / "weights"
    assert {value.dtype for file in folder.glob("*") for value in load_file(file).values()} == {torch.float32}
    found = {key: torch.empty(shape) for key, shape in sharded.shapes(folder).items()}
    sharded.read(folder, found)
    return found


def test_two_processes_train_as_one_does(done, by_two):
    expected = [line["loss"] for line in losses(done)]
    for kind in ("DDP", "FSDP2"):
        assert [line["loss"] for line in losses(by_two / kind)] == pytest.approx(expected, rel=2e-3), kind


def test_weights_gathered_in_8_bits_are_those_cast_later(by_two):
    assert losses(by_two / "gather") == losses(by_two / "fsdp")
    own, other = (sharded_weights(by_two / name) for name in ("gather", "fsdp"))
    torch.testing.assert_close(own, other, rtol=0, atol=0)
    results = [json.loads((by_two / name / "results.json").read_text()) for name in ("gather", "fsdp")]
    for stage in ("finetune", "finetune_ema"):  # of the rounded weights and of the weights
        assert results[0][stage]["losses"] == pytest.approx(results[1][stage]["losses"], rel=1e-3), stage


def test_gathering_in_8_bits_goes_with_packed_rows_in_bfloat16(done, by_two):
    expected = [line["loss"] for line in losses(done)]
    assert [line["loss"] for line in losses(by_two / "packed")] == pytest.approx(expected, rel=2e-3)
    assert sharded_weights(by_two / "packed")


def test_what_is_gathered_is_8_bits_and_a_run_goes_on_bit_for_bit(config, tmp_path, monkeypatch):
    from torchao.float8.fsdp_utils import WeightWithDynamicFloat8CastTensor as Cast

    gathered, original = [], Cast.fsdp_pre_all_gather

    def spy(self, mesh):
        tensors, metadata = original(self, mesh)
        gathered.append((tensors[0].dtype, self._precomputed_scale is not None))
        return tensors, metadata

    monkeypatch.setattr(Cast, "fsdp_pre_all_gather", spy)
    options = options_of("gather") | {"stages.finetune.evaluation": None}
    train(config, tmp_path / "run", options)
    assert {dtype for dtype, _ in gathered} == {torch.float8_e4m3fn}
    assert all(known for _, known in gathered)  # in the first step after a start too
    copy = interrupted(tmp_path / "run", tmp_path / "copy")
    train(config, copy, options, only="finetune")
    assert "goes on from step 2 of 4" in (copy / "train.log").read_text()
    torch.testing.assert_close(sharded_weights(copy), sharded_weights(tmp_path / "run"), rtol=0, atol=0)
    with pytest.raises(
        ValueError, match="fsdp_float8_all_gather=True needs parallel.type='FSDP2', but `parallel` is not"
    ):
        train(config, tmp_path / "alone", options | {"parallel": None})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_products_and_gathering_in_8_bits_on_one_card(config, tmp_path):
    """One process with NCCL, against the same recipe without 8 bits."""
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs capability 9.0")
    layers = ["llm.*.self_attn"]  # whose sizes fit
    plain = {"runtime.device": "cuda", "optim.precision": "bf16", "parallel": dict(type="FSDP2"), "data.pack": False}
    cases = dict(plain=None, rowwise=dict(), tensorwise=dict(recipe="tensorwise"), gathered=GATHER)
    for name, own in cases.items():
        transforms = [] if own is None else [dict(type="Float8", layers=layers, **own)]
        train(config, tmp_path / name, plain | {"stages.finetune.model_transforms": transforms})
        found, expected = ([line["loss"] for line in losses(tmp_path / run)] for run in (name, "plain"))
        assert found == pytest.approx(expected, rel=0.02) and (own is None or found != expected), name


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
