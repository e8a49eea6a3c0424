"""Exponents of cost, at tiny sizes."""

import itertools

import pytest
import torch
from run_helpers import ROOT

from asvr.profiling import growth
from asvr.profiling.growth import COSTS, Axis, axes, counted, exponents, grow, markdown
from asvr.profiling.growth_data import caches

SMALL = ROOT / "configs/benchmarks/growth_asvr.py"
TINY = {
    "model.encoder.arch.hidden_size": 16,
    "model.encoder.arch.intermediate_size": 24,
    "model.encoder.arch.num_hidden_layers": 3,
    "model.encoder.arch.image_size": 28,
    "model.llm.arch.hidden_size": 16,
    "model.llm.arch.intermediate_size": 24,
    "model.llm.arch.num_hidden_layers": 2,
    "model.llm.arch.vocab_size": 64,
    "model.reconstruction.0.head.width": 16,
}


def test_exponents_by_hand():
    rows = [dict(size=size, cost=3 * size**1.5) for size in (1, 2, 8)]
    assert exponents(rows, "cost") == pytest.approx((1.5, 1.5))
    assert exponents([*rows, dict(size=16, cost=2 * rows[-1]["cost"])], "cost")[1] == pytest.approx(1.0)


def slopes(rows: list[dict]) -> list[float]:
    return [(b["flops"] - a["flops"]) / (b["size"] - a["size"]) for a, b in itertools.pairwise(rows)]


def test_the_counted_cost_grows_as_it_must():
    by_name = {axis.name: Axis(axis.name, axis.points[:3]) for axis in axes()}
    codes = counted(SMALL, by_name["code depth"], TINY)
    assert [row["size"] for row in codes] == [1, 2, 4]
    # Attention over depth takes 4 P D^2 W in a layer. Here are 4 positions, width 16, 3 layers and 4 forward passes.
    (one, two), pairs = slopes(codes), 4 * 4 * 16 * 3 * 4
    assert two - one == pytest.approx(3 * pairs)
    books = slopes(counted(SMALL, by_name["codebook size"], TINY))
    assert books[0] == pytest.approx(books[1])


def test_an_axis_is_measured_and_reported(monkeypatch, tmp_path):
    depths = [{"model.reconstruction.0.tokenizer.depth": depth} for depth in (1, 2, 4)]
    monkeypatch.setattr(growth, "axes", lambda: [Axis("code depth", list(zip(depths, depths, strict=True)))])
    (result,) = grow(SMALL, SMALL, samples=2, rounds=2, fixed=(TINY, TINY))
    own = result["axes"]["code depth"]
    assert [row["size"] for row in own["measured"]] == [row["size"] for row in own["counted"]] == [1, 2, 4]
    assert all(len(row["all_seconds"]) == 2 and row["peak_bytes"] > 0 for row in own["measured"])
    assert own["exponents"].keys() == set(COSTS) and own["exponents"]["flops"][0] > 0
    text = markdown(result)
    assert "| code depth |" in text and "growth_asvr, 2 samples a step, median of 2" in text
    growth.draw(result, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="--axes depth: expected some of code depth"):
        next(grow(SMALL, SMALL, samples=2, rounds=2, only=["depth"]))


def test_caches_of_data_sets():
    """An image of `depth` codes of a byte each; the index grows too."""
    torch.manual_seed(0)
    found = caches(SMALL, [4, 8], TINY)
    assert [row["size"] for row in found["rows"]] == [4, 8]
    small, large = found["rows"]
    assert large["bytes"] - small["bytes"] > 4 * 4 * 8 and 0.5 < found["exponents"]["bytes"][0] < 1.1
    assert "| exponents |" in found["text"]
