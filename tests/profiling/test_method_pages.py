"""The pages of docs/methods: each method has one, and its costs are the measured ones."""

import json
from pathlib import Path

import pytest

from asvr.profiling.method_pages import pages

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs/methods"
RESULT = json.loads((ROOT / "benchmarks/results/methods.json").read_text())


def test_costs_are_the_measured_ones():
    """Otherwise: python benchmarks/method_pages.py"""
    for page, text in pages(RESULT, DOCS).items():
        assert page.read_text(encoding="utf-8") == text, page


def test_each_recipe_has_a_page_and_the_index_leads_to_it():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for recipe in (ROOT / "configs/targets/scenes").glob("*.py"):
        page = (DOCS / f"{recipe.stem}.md").read_text(encoding="utf-8")
        assert f"]({recipe.stem}.md)" in index
        for folder in ("vicuna7b", "scenes"):
            assert f"(../../configs/targets/{folder}/{recipe.name})" in page
        for heading in ("## Objective", "## Config", "## Cost"):
            assert heading in page, recipe.stem


def test_a_method_without_a_page_or_a_place_is_told(tmp_path):
    result = RESULT | {"methods": {"asvr": RESULT["methods"]["asvr"]}}
    with pytest.raises(ValueError, match="no page for the method asvr"):
        pages(result, tmp_path)
    (tmp_path / "asvr.md").write_text("# ASVR\n")
    with pytest.raises(ValueError, match="expected the lines"):
        pages(result, tmp_path)
    (tmp_path / "asvr.md").write_text("# ASVR\n<!-- cost -->\nmeasured before\n<!-- end of cost -->\n")
    (text,) = pages(result, tmp_path).values()
    assert "measured before" not in text and "| FLOPs of a training step | +19.1 % | +14.1 % |" in text
