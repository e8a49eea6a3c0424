"""FLOPs of whole recipes: fvcore's count, the formulas and torch's own counter agree."""

import pytest
from llm_families import FAMILIES
from run_helpers import ROOT
from test_throughput import LLAVA, TARGET, TINY

from asvr.data.batch import Segments
from asvr.flops.count import Sample
from asvr.flops.step import StepFlops
from asvr.models.batches import full_batch
from asvr.profiling.report import added, added_in_words, flops_report, markdown, memory_bytes, paper_ratio
from asvr.recipe.config import load_config
from asvr.recipe.recipe import Recipe


@pytest.fixture(scope="module")
def reports() -> dict:
    names = ("asvr_vicuna7b", "llava_vicuna7b")
    return {name: flops_report(load_config(ROOT / f"configs/{name}.py"), Sample()) for name in names}


def test_three_counts_agree_within_a_percent(reports):
    rows = {row["part"]: row for row in reports["asvr_vicuna7b"]["forward"]}
    for name in ("encoder", "LLM blocks", "head semantic"):
        assert rows[name]["torch"] == pytest.approx(rows[name]["fvcore"], rel=0.01), name
    compared = [name for name, row in rows.items() if row["formula"] is not None]
    assert len(compared) >= 6
    for name in compared:
        assert rows[name]["formula"] == pytest.approx(rows[name]["fvcore"], rel=0.01), name
    assert "| LLM blocks | 11.4" in markdown(reports["asvr_vicuna7b"])


def test_grouped_heads_agree_too():
    rows = flops_report(load_config(ROOT / "configs/asvr_mistral7b.py"), Sample())["forward"]
    (row,) = (row for row in rows if row["part"] == "LLM blocks")
    assert row["formula"] == pytest.approx(row["fvcore"], rel=0.01) == pytest.approx(row["torch"], rel=0.01)


def test_layers_of_two_widths_agree_too():
    cfg = load_config(LLAVA, TINY)
    cfg.model.llm.arch = dict(FAMILIES["gemma4"])
    (row,) = (row for row in flops_report(cfg, Sample())["forward"] if row["part"] == "LLM blocks")
    assert row["formula"] == pytest.approx(row["fvcore"], rel=0.01) == pytest.approx(row["torch"], rel=0.01)


def test_what_the_targets_add(reports):
    asvr, llava = reports.values()
    found = added(asvr, llava)
    assert 0 < found["flops_cached"] < found["flops_online"] < 15 and 0 < found["parameters"] < 15
    memory = dict.fromkeys(asvr["training"], 1.0)
    assert f"FLOPs {found['flops_online']:.1f} % with online codes" in added_in_words(dict(found, memory=memory))
    ratio = paper_ratio(asvr)
    assert ratio["multiply_accumulates"] == ratio["without_recomputation"] / 2 and 0.5 < ratio["online"] < 3


def test_a_step_needs_what_its_samples_need():
    cfg = load_config(ROOT / "configs/benchmarks/small_asvr.py", TINY | TARGET)
    stage = Recipe(cfg).stages["finetune"]
    count = StepFlops(stage)
    from asvr.recipe.preflight import build_meta

    model = build_meta(stage)
    padded = full_batch(model, 2, 40)
    whole = count.by_part([padded])
    packed = full_batch(model, 1, 80)
    packed.segments = Segments.of([40, 40])
    assert count.by_part([packed])["LLM blocks"] == whole["LLM blocks"]  # two samples in a row are not one of 80
    packed.segments = Segments.of([80])
    assert count.by_part([packed])["LLM blocks"] > whole["LLM blocks"]
    parts = {part.name: part.flops for part in count.parts}
    assert whole["head semantic"] == 3 * 2 * parts["head semantic"]
    assert whole["encoder"] == whole["tokenizer semantic: code search"] == 0  # features and codes are there
    padded.features_INE, padded.truth = None, {}
    online = count.by_part([padded])
    assert online["encoder"] == 2 * parts["encoder"]
    assert online["tokenizer semantic: code search"] == 2 * parts["tokenizer semantic: code search"]


def test_memory_of_the_stages():
    found = memory_bytes(load_config(LLAVA, TINY))
    assert set(found) == {"pretrain", "finetune"} and found["finetune"] > found["pretrain"] > 0
