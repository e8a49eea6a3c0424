"""asvr new: what it writes is a component that registers, a config that is right, and tests that pass."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from asvr.commands.new import KINDS, check_name, write
from asvr.recipe.catalog import component_kinds
from asvr.recipe.config import load_config
from asvr.recipe.validate import check_config


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of a user's, from which modules are imported; what they register is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if name.startswith("tried_"):
            del sys.modules[name]
    for registry in component_kinds().values():
        for name in [name for name in registry.module_dict if name.startswith("Tried")]:
            del registry.module_dict[name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_is_a_component_that_trains(kind, own, quick, monkeypatch):
    pytest.importorskip("easy_vqa", reason="the extra 'mini' is not installed")
    name, module = check_name(kind, f"Tried{kind.title()}")
    component, config, tests = write(kind, name, module, own)
    check_config(load_config(config))
    assert component_kinds()[kind].module_dict[name].__module__ == module
    texts = [(own / file).read_text() for file in (component, config, tests)]
    assert all(name in text for text in texts) and not re.search("my_?component", "".join(texts), re.IGNORECASE)
    ran = 0
    for function, test in runpy.run_path(str(own / tests)).items():
        if function.startswith("test_"):
            wanted = test.__code__.co_varnames[: test.__code__.co_argcount]
            test(**{key: value for key, value in dict(tmp_path=own, monkeypatch=monkeypatch).items() if key in wanted})
            ran += 1
    assert ran >= 2 and (own / "run" / "results.json").is_file()


@pytest.mark.parametrize(
    "given, names", [("EdgeMaps", ("EdgeMaps", "edge_maps")), ("edge_maps", ("EdgeMaps", "edge_maps"))]
)
def test_a_name_may_have_either_form(given, names):
    assert check_name("loss", given) == names


@pytest.mark.parametrize(
    "given, message",
    [
        ("2Maps", "expected a class name"),
        ("my-loss", "expected a class name"),
        ("Class", "expected a class name"),
        ("true", "expected a class name"),
        ("Tensor", "the skeleton uses Tensor for something else"),
        ("Json", "its file json.py would hide the module 'json'"),
        ("CosineLoss", "a loss CosineLoss exists already"),
    ],
)
def test_a_name_that_cannot_be_used_is_told(given, message):
    with pytest.raises(ValueError, match=message):
        check_name("loss", given)


def test_no_file_is_overwritten(tmp_path):
    (tmp_path / "test_edge_maps.py").write_text("mine")
    with pytest.raises(ValueError, match="test_edge_maps.py exists already"):
        write("loss", "EdgeMaps", "edge_maps", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["test_edge_maps.py"]
    assert len(write("loss", "EdgeMaps", "edge_maps", Path(tmp_path / "other"))) == 3
