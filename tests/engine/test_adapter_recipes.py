"""The recipes with adapters at tiny size: both stages with their targets, checkpoints of adapters alone, exact resume,
and merged weights."""

import shutil
from pathlib import Path

import pytest
import torch
from recipe_helpers import final, make_data, make_zoo, options
from run_helpers import ROOT, read_metrics
from safetensors.torch import load_file
from torch import Tensor

import asvr
from asvr.engine.run import run
from asvr.flops.memory import Machine, plan_memory
from asvr.models.transforms.qlora import NF4, dequantize, quantize
from asvr.recipe.config import load_config
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe

pytest.importorskip("peft", reason="peft is not installed")
RECIPES = {
    "llava_vicuna7b_lora.py": [],
    "asvr_vicuna7b_lora.py": ["semantic"],
    "asvr_vicuna7b_qlora.py": ["semantic"],
}
LAYERS = [f"self_attn.{key}_proj" for key in "qkvo"] + [f"mlp.{key}_proj" for key in ("gate", "up", "down")]
STEPS = 16


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
def trained(data, tmp_path_factory):
    """The work dir of a recipe's run, made once."""
    made: dict[str, Path] = {}

    def train(recipe: str) -> Path:
        if recipe not in made:
            made[recipe] = tmp_path_factory.mktemp("runs") / recipe
            run(config_of(recipe, data), made[recipe])
        return made[recipe]

    return train


def config_of(recipe: str, data: Path):
    changes = {
        "stages.finetune.schedule": dict(epochs=STEPS),  # of 4 rows, in steps of 4
        "stages.finetune.optim.lr": 2e-2,
        "runtime.checkpoint_interval": STEPS // 2 - 1,
        "runtime.keep_checkpoints": 4,
    }
    return load_config(ROOT / "configs" / recipe, options(data, RECIPES[recipe]) | changes)


def of_llm(work_dir: Path) -> dict[str, Tensor]:
    return {key: value for key, value in final(work_dir, "finetune").items() if key.startswith("llm.")}


@pytest.mark.parametrize("recipe", RECIPES)
def test_both_stages_train_and_the_losses_fall(recipe, trained):
    lines = [line for line in read_metrics(trained(recipe)) if line["stage"] == "finetune"]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for name in ("text", *RECIPES[recipe]):
        losses = [line[f"loss_{name}"] for line in lines]
        assert sum(losses[-3:]) < sum(losses[:3]), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_checkpoint_holds_the_adapters_alone(recipe, trained):
    adapters, suffixes = of_llm(trained(recipe)), [f".lora_{part}.default.weight" for part in "AB"]
    names = {f"llm.model.model.layers.{i}.{key}{end}" for i in range(2) for key in LAYERS for end in suffixes}
    assert adapters.keys() == names
    assert all(value.dtype == torch.float32 and value.abs().max() > 0 for value in adapters.values())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_resumes_exactly(recipe, trained, data, tmp_path):
    """With the dropout that the recipe has."""
    whole, cut = trained(recipe), tmp_path / "run"
    shutil.copytree(whole, cut)
    (cut / "finetune" / "done.json").unlink()
    for step in (STEPS, 2 * (STEPS // 2 - 1)):
        shutil.rmtree(cut / "finetune" / "checkpoints" / f"step_{step:08d}")
    run(config_of(recipe, data), cut)
    assert f"goes on from step {STEPS // 2 - 1} of {STEPS}" in (cut / "train.log").read_text()
    expected, found = final(whole, "finetune"), final(cut, "finetune")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def in_four_bits(weight: Tensor) -> Tensor:
    codes, scales = quantize(weight)
    return dequantize(scales, codes, torch.tensor(NF4), weight.shape, weight.dtype)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_loaded_model_has_the_sum_of_weights_and_adapters(recipe, trained, zoo):
    """In bfloat16, which rounds it: a product of B and A times alpha / r = 2."""
    found = asvr.load(trained(recipe)).model.llm.state_dict()
    base, adapters = load_file(zoo / "lmsys/vicuna-7b-v1.5" / "model.safetensors"), of_llm(trained(recipe))
    for key in (f"model.layers.{i}.{layer}" for i in range(2) for layer in LAYERS):
        weight = base[f"{key}.weight"]
        assert weight.dtype == torch.bfloat16
        a, b = (adapters[f"llm.model.{key}.lora_{part}.default.weight"] for part in "AB")
        expected = (in_four_bits(weight) if "qlora" in recipe else weight).float() + 2.0 * (b @ a)
        merged = found[f"model.{key}.weight"]
        torch.testing.assert_close(merged.float(), expected, rtol=2**-7, atol=2**-9)
        assert not torch.equal(merged, weight)
    assert torch.equal(found["model.lm_head.weight"], base["lm_head.weight"])


# Memory of the recipes as they are, counted by hand.
HIDDEN, INTERMEDIATE, BLOCKS, RANK = 4096, 11008, 32, 128
LINEAR = BLOCKS * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INTERMEDIATE)  # weights beneath the adapters
LLM = LINEAR + 2 * 32000 * HIDDEN + (2 * BLOCKS + 1) * HIDDEN  # embeddings, LM head, norms
ADAPTERS = BLOCKS * RANK * (4 * (HIDDEN + HIDDEN) + 3 * (HIDDEN + INTERMEDIATE))
PROJECTOR = 1152 * HIDDEN + HIDDEN + HIDDEN * HIDDEN + HIDDEN
ROTARY = 2 * 64 * 4  # two buffers of frequencies, in float32
TABLES = BLOCKS * 7 * 16 * 4  # the 16 numbers of NormalFloat beside each layer, in float32


def finetune_plan(recipe: str):
    """The plan, and the bytes of encoder, codebooks and heads, which have no adapters; parameters of the heads."""
    stage = Recipe(load_config(ROOT / "configs" / recipe)).stages["finetune"]
    model = build_meta(stage)
    parts = [part for name, part in model.components().items() if name not in ("projector", "llm")]
    others = sum(t.numel() * t.element_size() for part in parts for t in [*part.parameters(), *part.buffers()])
    heads = sum(p.numel() for p in model.heads.parameters())
    return plan_memory(stage, model), others, heads


@pytest.mark.parametrize("recipe", ["asvr_vicuna7b_lora.py", "asvr_vicuna7b_qlora.py"])
def test_the_memory_plan_is_a_count_by_hand(recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("ASVR_MODEL_ZOO", str(tmp_path))  # not the tiny ones
    monkeypatch.setattr("asvr.base.hub.resolve", lambda name: None)
    plan, others, heads = finetune_plan(recipe)
    assert (LLM, ADAPTERS) == (6_738_415_616, 319_815_680)
    packed = LINEAR // 2 + LINEAR // 64 * 4  # 4 bits each, a float32 scale for 64
    beneath = packed + TABLES + 2 * (LLM - LINEAR) if "qlora" in recipe else 2 * LLM
    assert plan.weights == beneath + ROTARY + 4 * ADAPTERS + 4 * PROJECTOR + others
    assert plan.gradients == 4 * (ADAPTERS + PROJECTOR + heads)
    assert plan.optimizer == 8 * (ADAPTERS + PROJECTOR + heads)
    assert heads > 700_000_000
    eight = plan.per_card(Machine(8, "80 GB", 79.1 * 2**30)) - plan.activations["full"]
    shared = plan.states - (packed if "qlora" in recipe else 0)
    assert eight == shared // 8 + plan.states - shared
