"""The sizes of a recipe are those that the dry run prints."""

import re
from pathlib import Path

import pytest

from asvr.flops.count import Sample
from asvr.profiling.dry_run import dry_run
from asvr.profiling.sizes import recipe_sizes
from asvr.recipe.config import load_config
from asvr.recipe.recipe import load_recipe

CONFIG = Path(__file__).parents[2] / "configs/examples/lora.py"


@pytest.fixture(scope="module")
def sizes() -> dict:
    return recipe_sizes(load_recipe(CONFIG), Sample(text_tokens=128 - 16))  # data.max_length without the image


def test_sizes_are_those_of_the_dry_run(sizes):
    tables = dry_run(load_config(CONFIG))
    sums = [re.findall(r"[\d.,]+", line) for line in tables.splitlines() if re.match(r"│ sum ", line)]
    parameters, flops = ([float(number.replace(",", "")) for number in found] for found in sums)
    stages = sizes["stages"].values()
    assert parameters[1:] == pytest.approx([stage["trained"] / 1e6 for stage in stages], abs=0.005)
    assert flops[1:] == pytest.approx([stage["flops"] / 1e6 for stage in stages], rel=1e-3)
    card = next(line for line in tables.splitlines() if "1 x 80 GB" in line)
    planned = [float(number) for number in re.findall(r"([\d.]+)  fits", card)]
    assert planned == pytest.approx([stage["memory"] / 1e9 for stage in stages], rel=5e-3)


def test_what_cannot_be_traced_is_told(monkeypatch):
    def broken(*args):
        raise RuntimeError("no tracing\nof this")

    monkeypatch.setattr("asvr.profiling.sizes.parts_by_stage", broken)
    monkeypatch.setattr("asvr.profiling.sizes.plan_memory", broken)
    stages = recipe_sizes(load_recipe(CONFIG), Sample())["stages"].values()
    assert all("no tracing" in stage[key] and "\n" not in stage[key] for stage in stages for key in ("flops", "memory"))
    assert all(stage["trained"] > 0 for stage in stages)
