"""What ``activation_checkpointing="auto"`` recomputes follows from the memory, and changes no number."""

import logging
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from test_memory import LAYERS, ROWS, TOKENS, config

from asvr.flops import recomputation
from asvr.flops.memory import MemoryPlan, plan_memory
from asvr.flops.recomputation import fit_memory
from asvr.models.attention import use_attention
from asvr.models.batches import full_batch
from asvr.models.checkpointing import LinearBytes, Recomputation
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe
from asvr.registry import MODELS

# An optim wrapper that changes nothing.
WRAPPER = dict(
    optim_context=lambda model: nullcontext(),
    backward=lambda loss: loss.backward(),
    step=lambda: None,
    zero_grad=lambda: None,
)


@pytest.fixture(autouse=True)
def logged(caplog):
    caplog.set_level(logging.INFO, "asvr")


def fits(room: float, **changes) -> Recomputation:
    """States 40; of a micro-batch of 10 tokens, 20 bytes are the least, and each of 4 blocks keeps 20 more."""
    lines = dict(least=LinearBytes(40, 2), llm_kept=LinearBytes(40, 10), all_kept=LinearBytes(40, 11))
    return Recomputation(**dict(layers=4, heads=("semantic",), tokens=10, crops=2, room=room, **lines) | changes)


@pytest.mark.parametrize(
    "room, blocks", [(0, 0), (59, 0), (60, 0), (79, 0), (80, 1), (119, 2), (140, 4), (149, 4), (150, 4), (999, 4)]
)
def test_blocks_by_hand(room, blocks):
    assert fits(room).kept(10) == (blocks, room >= 150)


def test_a_smaller_micro_batch_keeps_more():
    assert [fits(100).kept(tokens)[0] for tokens in (100, 20, 10, 7, 6, 5, 1)] == [0, 0, 2, 3, 4, 4, 4]
    assert [fits(100).kept(tokens)[1] for tokens in (6, 5, 1)] == [False, True, True]


def test_a_micro_batch_with_short_texts_counts_by_its_images():
    kept: list[int] = []
    model = SimpleNamespace(llm=SimpleNamespace(keep_activations=kept.append), heads={"semantic": SimpleNamespace()})
    for tokens, crops in ((5, 1), (5, 2), (10, 0), (1, 0)):
        fits(100).apply(model, tokens, crops)
    assert kept == [4, 2, 2, 4]


def test_an_llm_that_is_not_auto_leaves_room_for_the_heads():
    own = dict(layers=0, least=LinearBytes(40, 10))
    assert fits(150, **own).kept(10) == (0, True) and fits(149, **own).kept(10) == (0, False)


def test_a_compiled_block_keeps_what_selective_keeps():
    given = dict(weights=10, gradients=10, optimizer=20, activations=dict(none=110, selective=60, full=20))
    plan = MemoryPlan(**given, copies=dict(none=10, selective=5, full=5), mode="full", kept="selective")
    assert recomputation._linear_bytes(plan, plan.kept, 11) == LinearBytes(45, 5)
    assert recomputation._linear_bytes(plan, "none", 10) == LinearBytes(50, 10)


def stage_of(mode: str, head: str = "none"):
    cfg = config(activation_checkpointing=mode).to_dict()
    cfg["model"]["reconstruction"][0]["head"]["activation_checkpointing"] = head
    return Recipe(Config(cfg)).stages["all"]


def built(stage):
    torch.manual_seed(0)
    model = MODELS.build(stage.model, default_args=dict(vocab_size=100)).train()
    model.train_only(list(stage.train))
    use_attention(model, "sdpa", None)
    return model


def gradients(model) -> dict:
    batch = full_batch(model, ROWS, TOKENS)
    model(batch, model.count_targets([batch]))["loss"].backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kept", [0, 1, LAYERS])
def test_the_last_blocks_keep_their_activations_and_gradients_are_the_same(kept, monkeypatch, caplog):
    stage = stage_of("auto", head="auto")
    needed = plan_memory(stage, build_meta(stage))
    each = (needed.activations["none"] - needed.activations["full"]) / LAYERS
    room = needed.states + needed.activations["full"] + (kept + 0.5) * each
    monkeypatch.setattr(recomputation, "usable_bytes", lambda device: room)
    model = built(stage)
    fit_memory(stage, model, torch.device("cpu"))
    runs = [0] * LAYERS
    for i, block in enumerate(model.llm.blocks):
        block.mlp.register_forward_pre_hook(lambda *_, i=i: runs.__setitem__(i, runs[i] + 1))
    own = gradients(model)
    assert runs == [2] * (LAYERS - kept) + [1] * kept
    other = gradients(built(stage_of("none")))
    assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
    text = f"recomputes {LAYERS - kept} of {LAYERS} blocks of the LLM and 1 of 1 heads in a micro-batch of 80 tokens"
    assert text in caplog.text


@pytest.mark.parametrize("change", [dict(), dict(compile=True), dict(parallel=True)])
def test_each_micro_batch_recomputes_what_its_own_size_requires(change, monkeypatch):
    """With room for all of half the largest micro-batch. Compiled, or with other processes, the largest decides."""
    stage = stage_of("auto", head="auto")
    plan = plan_memory(stage, build_meta(stage))
    room = plan.states + plan.activations["none"] // 2 + plan.activations["none"] // 10
    monkeypatch.setattr(recomputation, "usable_bytes", lambda device: room)
    stage = replace(stage, parallel=Config(dict(type="DDP")) if "parallel" in change else None)
    stage.runtime.compile = change.get("compile", False)
    model, runs = built(stage), []
    fit_memory(stage, model, torch.device("cpu"))
    model.llm.blocks[0].mlp.register_forward_pre_hook(lambda *_: runs.append("block"))
    model.heads["semantic"].layers[0].register_forward_pre_hook(lambda *_: runs.append("head"))
    small, large = full_batch(model, 1, TOKENS), full_batch(model, ROWS, TOKENS)
    found = []
    for batch in (small, large, small):
        runs.clear()
        model.train_step([batch], SimpleNamespace(**WRAPPER))
        found.append((runs.count("block"), runs.count("head")))
    assert found == ([(2, 2)] * 3 if change else [(1, 1), (2, 2), (1, 1)])


def test_with_room_for_everything_nothing_is_recomputed(monkeypatch, caplog):
    monkeypatch.setattr(recomputation, "usable_bytes", lambda device: 1e12)
    stage = stage_of("auto", head="auto")
    model = built(stage)
    fit_memory(stage, model, torch.device("cpu"))
    assert model.heads["semantic"].activation_checkpointing == "none" and model.recomputation is None
    assert f"recomputes 0 of {LAYERS} blocks of the LLM and 0 of 1 heads" in caplog.text


def test_a_model_that_cannot_be_planned_recomputes_everything(monkeypatch, caplog):
    def fails(stage):
        raise RuntimeError("no fake kernel")

    monkeypatch.setattr(recomputation, "build_meta", fails)
    stage = stage_of("auto")
    model = built(stage)
    fit_memory(stage, model, torch.device("cpu"))
    assert "recomputes everything, not planned: RuntimeError: no fake kernel" in caplog.text
    assert all(block.gradient_checkpointing for block in model.llm.blocks)


def test_other_modes_are_not_planned(monkeypatch):
    monkeypatch.setattr(recomputation, "build_meta", lambda stage: pytest.fail("planned"))
    for mode in ("none", "selective", "full"):
        stage = stage_of(mode)
        fit_memory(stage, built(stage), torch.device("cpu"))


def test_a_machine_that_does_not_say_its_memory_is_an_error(monkeypatch):
    def unknown(device):
        raise ValueError("activation_checkpointing='auto' needs /proc/meminfo")

    monkeypatch.setattr(recomputation, "usable_bytes", unknown)
    stage = stage_of("auto")
    with pytest.raises(ValueError, match="needs /proc/meminfo"):
        fit_memory(stage, built(stage), torch.device("cpu"))


def test_processes_decide_alike(monkeypatch):
    """By the one that can keep least, here the other process."""
    monkeypatch.setattr(recomputation, "usable_bytes", lambda device: 1e12)
    monkeypatch.setattr(recomputation, "gather", lambda own: [own, (1, False)])
    stage = stage_of("auto", head="auto")
    model = built(stage)
    fit_memory(stage, model, torch.device("cpu"))
    assert [block.gradient_checkpointing for block in model.llm.blocks] == [True] * (LAYERS - 1) + [False]
    assert model.heads["semantic"].activation_checkpointing == "full"


def test_blocks_that_cannot_be_switched_are_all_recomputed(monkeypatch):
    stage = stage_of("auto")
    llm = built(stage).llm
    monkeypatch.delattr("transformers.modeling_layers.GradientCheckpointingLayer.gradient_checkpointing")
    for block in llm.blocks:
        vars(block).pop("gradient_checkpointing", None)
    assert llm.keep_activations(1) == 0 and llm.keep_activations(LAYERS) == LAYERS
