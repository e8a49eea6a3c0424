"""docs/compatibility.md: every cell of the matrix does what the page says."""

import json
from itertools import chain

import pytest
from compatibility_cells import AXES, Files, pairs
from compatibility_page import page, refused_pairs
from compatibility_plan import ALL_PAIRS, Reader, configs_by_cell, cover, unusual
from compatibility_run import WORKS, outcome
from run_helpers import ROOT

CELLS = json.loads((ROOT / "docs" / "compatibility.json").read_text(encoding="utf-8"))
FOUND = [({axis: cell[axis] for axis in AXES}, cell["outcome"]) for cell in CELLS]
NEEDS = {"LoRA": "peft", "QLoRA": "peft", "Float8": "torchao", "denoising": "diffusers"}
AGAIN = "python benchmarks/compatibility.py writes it anew"

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # where examples/ is
        yield Files(tmp_path_factory.mktemp("cells"))


@pytest.mark.parametrize("number", range(len(FOUND)))
def test_a_cell(number, files):
    cell, said = FOUND[number]
    for package in {NEEDS[value] for value in cell.values() if value in NEEDS}:
        pytest.importorskip(package)
    assert outcome(cell, files) == said, AGAIN


def test_every_two_values_stand_in_a_cell():
    works = set(chain.from_iterable(pairs(cell) for cell, said in FOUND if said == WORKS))
    refused = set(chain.from_iterable(refused_pairs(cell) for cell, said in FOUND if said != WORKS))
    assert works | refused == ALL_PAIRS, AGAIN


def test_every_config_is_a_cell_that_works_and_the_page_is_that_of_the_cells(files):
    configs = configs_by_cell(Reader(files))
    works = {frozenset(cell.items()) for cell, said in FOUND if said == WORKS}
    assert [names for cell, names in configs.items() if cell not in works] == [], AGAIN
    assert (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8") == page(FOUND, configs), AGAIN


def test_a_refusal_is_told_by_the_fewest_values():
    bad = {frozenset({("llm", "mamba"), ("rows", "packed")}), frozenset({("encoder", "s2"), ("cache", "codes")})}
    found = cover([], lambda cell: "no" if any(one <= cell.items() for one in bad) else WORKS)
    assert {unusual(cell) for cell, said in found if said != WORKS} == bad
    assert set(chain.from_iterable(pairs(cell) for cell, said in found if said == WORKS)) == ALL_PAIRS - bad
