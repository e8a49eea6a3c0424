"""Trainings on paper."""

import json
from dataclasses import replace

import pytest
import torch
from run_helpers import ROOT, call_tool

from asvr.flops.sharded import FLOAT, HALF, Sizes, copied_offloaded, gathered_bytes
from asvr.profiling.plan import (
    Assumed,
    Cluster,
    InputPlan,
    Layout,
    images_per_second,
    layouts,
    plan,
    received,
)
from asvr.profiling.plan_table import tables
from asvr.recipe.config import load_config
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe

RECIPE = ROOT / "configs/asvr_vicuna7b.py"
SIZES = Sizes(blocks=800, num_blocks=4, root=100, trained=900, saved=900)


@pytest.fixture(scope="module")
def finetune():
    return plan(load_config(RECIPE), Cluster(8, 8), Assumed())["finetune"]


def test_one_card_receives_nothing():
    cluster = Cluster(1, 1)
    assert [received(layout, SIZES, cluster, 3) for layout in layouts(cluster)] == [(0, 0), (0, 0)]


def test_bytes_received_by_hand():
    cluster = Cluster(2, 4)
    ddp, whole, hybrid = layouts(cluster)
    assert (whole, hybrid) == (Layout("FSDP2, all cards", 8, 1), Layout("FSDP2, shard = a node", 4, 2))
    gathers, reduces = 3 * (2 * 800 * HALF + 100 * FLOAT), 3 * 900 * FLOAT  # 3 micro-batches
    assert received(ddp, SIZES, cluster, 3) == (2 * 900 * FLOAT * 7 / 8, 2 * 900 * FLOAT / 2 / 4)
    assert received(whole, SIZES, cluster, 3) == ((gathers + reduces) * 7 / 8, (gathers + reduces) / 2 / 4)
    between = 2 * 900 / 4 * FLOAT / 2  # a shard, between two nodes
    assert received(hybrid, SIZES, cluster, 3) == ((gathers + reduces) * 3 / 4 + between, between)
    assert gathered_bytes(SIZES) == 2 * (100 * FLOAT + 2 * 200 * HALF)


def test_the_recipe_fits_sharded_only(finetune):
    ddp, whole, hybrid = finetune.layouts
    assert not ddp.fits and whole.fits and hybrid.fits and finetune.best in (whole, hybrid)
    assert whole.memory < hybrid.memory < ddp.memory
    assert finetune.steps == 78_125 and finetune.tokens_per_card == 2 * (729 + 128)
    assert all(layout.seconds >= finetune.compute for layout in finetune.layouts)


def test_states_in_the_memory_of_the_cpu():
    """DDP has none there. On one card the copies take the longest, as there is no other traffic."""
    options = {"parallel": dict(type="FSDP2", cpu_offload=True, param_dtype="bfloat16")}
    cfg = load_config(ROOT / "configs/benchmarks/small_asvr.py", options)
    ddp, whole = plan(cfg, Cluster(1, 1), Assumed())["finetune"].layouts
    assert ddp.on_cpu == ddp.copied == 0 and ddp.bound == "products"
    assert whole.memory < ddp.memory and 0 < whole.on_cpu < ddp.memory
    assert whole.bound == "copies" and whole.seconds == whole.copied / 25e9


def test_copies_have_the_dtype_of_their_weights():
    """By hand. Frozen weights in half precision take 2 bytes each, and those that stay on the card are not copied."""
    options = {"parallel": dict(type="FSDP2", cpu_offload=True), "stages.pretrain.model.llm.dtype": "bfloat16"}
    stage = Recipe(load_config(ROOT / "configs/benchmarks/small_asvr.py", options)).stages["pretrain"]
    model = build_meta(stage)
    assert {(p.dtype, p.requires_grad) for p in model.llm.parameters()} == {(torch.bfloat16, False)}
    inside = {id(p) for block in model.llm.blocks for p in block.parameters()}
    blocks = sum(p.numel() for p in model.parameters() if id(p) in inside)
    root = sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in inside)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert copied_offloaded(stage, model, 3) == 3 * (2 * 2 * blocks + root + 4 * trained)
    stage.parallel.update(reshard_after_forward=False, reduce_each=False)
    assert copied_offloaded(stage, model, 3) == 3 * (2 * blocks + root) + 4 * trained
    stage.parallel["frozen"] = "replicate"
    assert copied_offloaded(stage, model, 3) == 3 * 4 * trained + 4 * trained
    stage.parallel["cpu_offload"] = False
    assert copied_offloaded(stage, model, 3) == 0


@pytest.mark.parametrize(("host_memory", "fits"), [(1000.0, True), (0.1, False)])
def test_a_node_must_hold_what_its_cards_offload(host_memory, fits):
    options = {"parallel": dict(type="FSDP2", cpu_offload=True, param_dtype="bfloat16")}
    cfg = load_config(ROOT / "configs/benchmarks/small_asvr.py", options)
    cluster = Cluster(2, 4, host_memory=host_memory)
    stages = plan(cfg, cluster, Assumed())
    ddp, whole, hybrid = stages["finetune"].layouts
    assert ddp.fits_host and whole.fits_host is hybrid.fits_host is fits
    assert hybrid.on_cpu == pytest.approx(2 * whole.on_cpu, rel=1e-6)  # each node has a copy
    assert fits or stages["finetune"].best is ddp
    text = tables(stages, InputPlan(50, 0, 0), cluster, Assumed())
    assert f"The CPU of a node has {host_memory:,.1f} GB of memory, by --host-memory" in text
    rows = [line for line in text.splitlines() if "of a node together, GB" in line]
    assert rows and all(("does NOT fit" in line) is not fits for line in rows)


def test_a_slower_network_binds(finetune):
    slow = plan(load_config(RECIPE), Cluster(8, 8, network_gbs=10), Assumed())["finetune"]
    assert {layout.bound for layout in slow.layouts} == {"network"}
    assert slow.best.seconds > finetune.best.seconds and slow.compute == finetune.compute


def test_pictures_are_measured():
    from asvr.data.transforms import ImageTransform

    small, large = (images_per_second(ImageTransform(size=(s, s)), "square", 0.2) for s in (32, 1024))
    assert small > large > 0


def test_the_tool(tmp_path):
    command = ["tools/estimate.py", "configs/benchmarks/small_asvr.py"]
    done = call_tool(*command, "--plan", "2x4", "--samples", "1000", "--out", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    assert "2 x 4 H100, 1,000 samples in each stage" in done.stdout and "FSDP2, shard = a node" in done.stdout
    whole = json.loads((tmp_path / "plan.json").read_text())
    assert whole["cluster"] == dict(Cluster(2, 4).__dict__) and whole["assumed"]["samples"] == 1000
    assert "Dry run of small_asvr.py" in call_tool(*command).stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plan", "8"], "--plan '8': expected NODESxGPUS"),
        (["--plan", "0x8"], "--plan '0x8': expected NODESxGPUS"),
        (["--samples", "5"], "--samples needs --plan"),
        (["--plan", "1x8", "--mfu", "0"], "--mfu 0.0: expected a number above 0"),
        (["--plan", "1x8", "--mfu", "45"], "--mfu 45.0: expected a share, at most 1"),
        (["--plan", "1x8", "--host-memory", "512"], "--host-memory has no effect: no stage has parallel.cpu_offload"),
        (["--host-memory", "0"], "--host-memory 0: expected a number above 0"),
        (["--plan", "1x8", "--card", "H1"], "--card 'H1': expected one of A100, H100, H200"),
    ],
)
def test_wrong_options_are_told(options, message):
    done = call_tool("tools/estimate.py", "configs/benchmarks/small_asvr.py", *options)
    assert done.returncode == 1 and message in done.stderr


def test_a_config_that_does_not_pack_and_has_fewer_samples_than_cards():
    done = call_tool("tools/estimate.py", "configs/asvr_mini.py", "--plan", "100x8")
    assert done.returncode == 0 and "Some cards have no sample in a step" in " ".join(done.stdout.split()), done.stderr


def test_layouts_of_one_node():
    assert [layout.name for layout in layouts(replace(Cluster(8, 8), nodes=1))] == ["DDP", "FSDP2, all cards"]
