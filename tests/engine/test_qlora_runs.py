"""Runs with adapters on weights of 4 bits: checkpoints hold the adapters, and a run goes on bit for bit."""

import shutil
from pathlib import Path

import pytest
import torch
from parallel_helpers import held, launch, losses, make_config, train
from PIL import Image
from transformers import LlavaForConditionalGeneration

import asvr
from asvr.engine.stages import finished_model
from asvr.flops.memory import plan_memory
from asvr.interchange.export import export_llava
from asvr.models.transforms import merge_transforms
from asvr.recipe.config import load_config
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe

pytest.importorskip("peft", reason="peft is not installed")
QLORA = dict(type="QLora", layers=["llm.*.self_attn"], r=2, alpha=16)
OPTIONS = {
    "stages.pretrain.optim": dict(lr=2e-3),
    "stages.finetune.model_transforms": [QLORA],
    "stages.finetune.optim": dict(lr=2e-2),
    "stages.finetune.evaluation": None,
    # Behind the adapters: with them as they are, and merged.
    "stages.same": dict(train=["llm"], model_transforms=[QLORA], schedule=dict(steps=2), evaluation=None),
    "stages.merged": dict(train=["projector"], init="finetune", schedule=dict(steps=2), evaluation=None),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_config(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def done(config, tmp_path_factory) -> Path:
    work_dir = tmp_path_factory.mktemp("run") / "qlora"
    train(config, work_dir, OPTIONS)
    return work_dir


def resumed(config: Path, work_dir: Path, copy: Path, options: dict, stage: str, steps: int) -> Path:
    shutil.copytree(work_dir, copy)
    (copy / stage / "done.json").unlink()
    shutil.rmtree(copy / stage / "checkpoints" / f"step_{steps:08d}")
    train(config, copy, options, only=stage)
    return copy


def model_of(work_dir: Path, stage: str):
    """As it trained, its adapters beside their layers."""
    tokenizer = asvr.load(work_dir, stage=stage).text_tokenizer
    model, _ = finished_model(Recipe(load_config(work_dir / "config.py")), stage, tokenizer, work_dir)
    return model.eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    ids = torch.arange(3, 23).view(2, 10)
    return model.llm.lm_head(model.llm.hidden(model.llm.embed(ids))[-1])


def test_a_checkpoint_holds_the_adapters_alone(done):
    weights = held(done, "finetune")
    llm = {key for key in weights if key.startswith("llm.")}
    assert len(llm) == 2 * 2 * 4 and all(".lora_" in key for key in llm)
    assert all(weights[key].abs().max() > 0 for key in llm if ".lora_B." in key)  # they were trained


def test_a_run_goes_on_bit_for_bit(done, config, tmp_path):
    copy = resumed(config, done, tmp_path / "copy", OPTIONS, "finetune", 4)
    assert "goes on from step 2 of 4" in (copy / "train.log").read_text()
    torch.testing.assert_close(held(copy, "finetune"), held(done, "finetune"), rtol=0, atol=0)


def test_later_stages_go_on_with_the_adapters_or_with_what_they_made(done):
    assert {k for k in held(done, "same") if k.startswith("llm.")} == {
        k for k in held(done, "finetune") if k.startswith("llm.")
    }
    model = model_of(done, "finetune")
    expected = logits(model)
    merge_transforms(model)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    merged = {f"llm.{key}": value for key, value in model.llm.state_dict().items()}
    weights = {key: value for key, value in held(done, "merged").items() if key.startswith("llm.")}
    torch.testing.assert_close(weights, merged, rtol=0, atol=0)


def test_a_loaded_a_saved_and_an_exported_model_answer_as_the_adapters_did(done, tmp_path):
    expected, found = logits(model_of(done, "finetune")), asvr.load(done, stage="finetune")
    torch.testing.assert_close(logits(found.model), expected, rtol=0, atol=1e-5)
    saved = asvr.load(found.save_pretrained(tmp_path / "saved"))
    assert torch.equal(logits(saved.model), logits(found.model))
    exported = LlavaForConditionalGeneration.from_pretrained(export_llava(found, tmp_path / "llava")).eval()
    ids = torch.arange(3, 23).view(2, 10)
    with torch.no_grad():
        own = exported(input_ids=ids).logits[..., : expected.shape[-1]]
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
    image = Image.new("RGB", (9, 9), "red")
    assert found.chat(image, "what is it?", max_new_tokens=3) == saved.chat(image, "what is it?", max_new_tokens=3)


def test_a_base_that_was_trained_before_is_saved_in_four_bits(config, tmp_path):
    options = OPTIONS | {"stages.pretrain.train": ["projector", "heads", "llm"]}
    options = {key: value for key, value in options.items() if key not in ("stages.same", "stages.merged")}
    train(config, tmp_path / "run", options)
    weights = held(tmp_path / "run", "finetune")
    base = {key: value for key, value in weights.items() if ".base_layer." in key}
    assert {key.rpartition(".")[2] for key in base} == {"codes", "scales"} and len(base) == 2 * 2 * 4
    copy = resumed(config, tmp_path / "run", tmp_path / "copy", options, "finetune", 4)
    torch.testing.assert_close(held(copy, "finetune"), weights, rtol=0, atol=0)
    found = asvr.load(copy)
    torch.testing.assert_close(logits(found.model), logits(model_of(copy, "finetune")), rtol=0, atol=1e-5)


def test_two_processes_train_as_one_does(done, config, tmp_path):
    kinds = dict(
        DDP=dict(type="DDP"),
        FSDP2=dict(type="FSDP2"),
        half=dict(type="FSDP2", param_dtype="bfloat16", reduce_dtype="float32"),
    )
    runs = [
        dict(config=str(config), work_dir=str(tmp_path / name), options=OPTIONS | {"parallel": kind})
        for name, kind in kinds.items()
    ]
    launch(tmp_path, runs, 2)
    expected = [line["loss"] for line in losses(done)]
    for name in kinds:
        near = 5e-3 if name == "half" else 2e-4
        assert [line["loss"] for line in losses(tmp_path / name)] == pytest.approx(expected, rel=near), name
    found = asvr.load(tmp_path / "FSDP2", stage="finetune").model
    torch.testing.assert_close(logits(found), logits(asvr.load(done, stage="finetune").model), rtol=1e-3, atol=1e-3)


def test_the_memory_plan_counts_four_bits(config):
    options = [{"stages.finetune.model_transforms": [dict(QLORA, type=kind)]} for kind in ("Lora", "QLora")]
    plans = []
    for own in options:
        stage = Recipe(load_config(config, own)).stages["finetune"]
        plans.append(plan_memory(stage, build_meta(stage)))
    layers, weights = 2 * 4, 16 * 16
    tables = layers * 16 * 4
    assert plans[0].weights - plans[1].weights == layers * weights * (4 - 4.5 / 8) - tables
    assert plans[0].gradients == plans[1].gradients and plans[0].optimizer == plans[1].optimizer
