"""The dry run of the paper's recipe, as a user starts it."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from run_helpers import DRY_RUN

from asvr.flops.count import Part, training_factor
from asvr.profiling import dry_run as dry_run_module
from asvr.profiling.dry_run import dry_run
from asvr.recipe.config import load_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> str:
    """What the command prints on a machine without weights."""
    empty = str(tmp_path_factory.mktemp("empty"))
    env = dict(os.environ, ASVR_MODEL_ZOO=empty, HF_HUB_CACHE=empty, PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, *DRY_RUN], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def row(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith("│") and name in line]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_parameters_in_total_and_by_stage(printed):
    assert row(printed, "HFCausalLM")[2:] == ["6,738.42", "0", "6,738.42"]
    assert row(printed, "DepthTransformerHead")[2:] == ["736.54"] * 3
    assert row(printed, "SemanticTokenizer")[2:] == ["151.13", "0", "0"]


def test_visual_tokens_and_flops(printed):
    assert row(printed, "target semantic")[1:4] == ["27 x 27", "729", "5,832"]
    assert row(printed, "LLM blocks")[1:] == ["11.48", "31.98  (x 2.78)", "43.47  (x 3.78)"]
    assert "1 image (729 tokens) and 128 text tokens" in " ".join(printed.split())


@pytest.mark.parametrize("cache, encoder, search", [(False, 1, 1), ("codes", 1, 0), (True, 0, 0)])
def test_what_a_cache_holds_costs_nothing(cache, encoder, search):
    """Cached codes leave the encoder to run."""
    parts = [Part("encoder", "encoder", 1), Part("code search", "tokenizer.semantic", 1)]
    factors = [
        training_factor(
            part, ["llm"], recomputed=set(), cached=dry_run_module._is_cached(part, cache, {"tokenizer.semantic"})
        )
        for part in parts
    ]
    assert factors == [encoder, search]


@pytest.mark.parametrize(("host_memory", "end"), [(1000.0, "  fits"), (0.5, "  does NOT fit")])
def test_offloaded_states_against_the_memory_of_the_machine(host_memory, end):
    options = {"parallel": dict(type="FSDP2", cpu_offload=True)}
    cfg = load_config(ROOT / "configs/benchmarks/small_asvr.py", options)
    text = dry_run(cfg, host_memory=host_memory)
    for machine in ("1 x 80 GB", "8 x 80 GB"):  # all cards of a machine together
        assert row(text, f"memory of the CPU of {machine}")[2].endswith(end)
    assert f"The memory of the CPU is {host_memory:,.1f}e9 bytes" in " ".join(text.split())


def test_memory_plan_of_the_three_machines(printed):
    for machine, pretrain, finetune in (
        ("1 x 80", "fits", "NOT"),
        ("8 x 80", "fits", "fits"),
        ("1 x 141", "fits", "fits"),
    ):
        cells = row(printed, f"on each card of {machine} GB")
        assert cells[1].endswith(pretrain) and finetune in cells[2]
    assert "sharded evenly" in " ".join(printed.split())


def test_it_needs_less_than_four_gibibytes(printed):
    assert printed
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * 2**20  # KiB, of the largest child


def test_a_wrong_config_is_refused_as_in_a_real_run():
    cfg = load_config(ROOT / "configs" / "asvr_vicuna7b.py", {"data.on_error": "ignore"})
    with pytest.raises(ValueError, match="data.on_error='ignore'"):
        dry_run(cfg)


def test_heads_of_a_later_stage_are_in_the_total():
    text = dry_run(load_config(ROOT / "configs/targets/vicuna7b/metamorph.py"))
    total, pretrain, finetune = row(text, "│ heads ")[2:]
    assert pretrain == "0" and total == finetune != "0"


def test_a_stage_without_images_is_counted_without_them():
    text = dry_run(load_config(ROOT / "configs/asvr_mini.py"))
    words = " ".join(text.split())
    assert "1 image (16 tokens) and 112 text tokens, all supervised. " in words
    assert "Stage blind: the same text without the image. " in words
    assert "blind 64 rows of 128 tokens without images, pretrain 64 rows of 128 tokens with 64 images" in words
    assert row(text, "│ head semantic")[2] == "" != row(text, "│ head semantic")[3]
    blind, seeing = (float(row(text, "│ LLM blocks")[i].split()[0]) for i in (2, 3))
    assert 112 / 128 > blind / seeing > (112 / 128) ** 2
