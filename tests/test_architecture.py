"""The layers that an import goes down: pyproject.toml's contract and docs/architecture.md name all of them."""

import re
import tomllib
from pathlib import Path

import pytest
from mmengine.registry import Registry

import asvr.registry

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]


@pytest.fixture(scope="module")
def layers() -> list[list[str]]:
    """The modules of each layer, the highest first."""
    (contract,) = (contract for contract in CONTRACTS if contract["type"] == "layers")
    assert contract["containers"] == ["asvr"]
    return [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]


def test_the_contract_names_every_module_of_the_library(layers):
    """`lint-imports` looks at nothing that no layer names."""
    inside = {path.name for path in (ROOT / "asvr").iterdir() if (path / "__init__.py").is_file()}
    inside |= {path.stem for path in (ROOT / "asvr").glob("*.py")} - {"__init__", "__main__"}
    named = [name for layer in layers for name in layer]
    assert sorted(named) == sorted(inside)


def test_no_package_may_have_a_circle():
    (contract,) = (contract for contract in CONTRACTS if contract["type"] == "acyclic_siblings")
    assert contract["ancestors"] == ["asvr"] and "ignore_imports" not in contract


def test_the_page_shows_the_layers_in_the_order_of_the_contract(layers):
    rows = [re.findall(r"`asvr/(\w+)(?:/|\.py)`", row[1]) for row in rows_of("## Layers")]
    assert rows == layers


def test_the_page_names_what_is_there():
    paths = re.findall(r"\b((?:asvr|tests|examples|configs|tools)/[\w./*-]*)", PAGE)
    assert len(paths) > 40 and [path for path in paths if not list(ROOT.glob(path.rstrip(".")))] == []
    rows = [row for row in rows_of("## Where does a change belong?") if len(row) == 4]
    assert len(rows) == 15
    for _, name, *_ in rows:
        assert isinstance(getattr(asvr.registry, name.strip("`")), Registry)


def rows_of(heading: str) -> list[list[str]]:
    """The cells of the tables below a heading, without the tables' heads."""
    lines = PAGE.partition(heading)[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [row for row in rows if row[0] not in ("layer", "new", "change")]
