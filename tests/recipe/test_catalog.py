"""The list of components, and the list of recipes."""

import pytest
from run_helpers import ROOT

import asvr
from asvr.base.recipes import config_file
from asvr.recipe.catalog import component_kinds, find_kind
from asvr.registry import ENCODERS, PROJECTORS


def one(kind: str, name: str):
    (found,) = [c for c in asvr.list_components(kind) if c.name == name]
    return found


def fields(kind: str, name: str) -> dict:
    return {field.name: field for field in one(kind, name).fields}


def test_every_registered_component_is_listed_with_a_line_of_its_own():
    listed = asvr.list_components()
    for kind, registry in component_kinds().items():
        assert {c.name for c in listed if c.kind == kind} == set(registry.module_dict)
    own = [c for c in listed if c.module.startswith("asvr.")]
    assert len(own) > 50
    assert [c.name for c in own if not 20 < len(c.summary) < 125 or "\n" in c.summary] == []


def test_a_components_fields_are_those_of_its_constructor():
    mlp = fields("projector", "MLPProjector")
    assert list(mlp) == ["in_width", "out_width", "layers", "norm", "positions"]
    assert mlp["in_width"].injected and not mlp["in_width"].required and not mlp["layers"].injected
    assert (mlp["layers"].type, mlp["layers"].default) == ("int", 2)
    assert mlp["norm"].description.startswith("whether a layer norm comes first")
    timm = fields("encoders", "TimmEncoder")
    assert timm["model"].required and not timm["weights"].required and timm["weights"].type == "str | None"
    # Both names stand before one text, and a name may stand in the middle of a line.
    assert timm["mean"].description == timm["std"].description == "they replace the model's own."
    soft, code = fields("target", "SoftCodeTarget"), fields("target", "CodeTarget")
    assert soft.keys() > code.keys(), "a **kwargs leads to the fields of the base class"
    assert soft["resample"].description == code["resample"].description != ""


@pytest.mark.parametrize(
    "word, kind",
    [
        *[
            ("encoder", "encoder"),
            ("ENCODERS", "encoder"),
            ("losses", "loss"),
            ("visual tokenizers", "visual_tokenizer"),
        ],
        *[("visual-tokenizer", "visual_tokenizer"), ("reconstruction target", "target"), ("optimizers", "optimizer")],
    ],
)
def test_a_kind_is_found_by_any_form_of_its_name(word, kind):
    assert find_kind(word) == kind


def test_an_unknown_kind_is_told_with_the_nearest():
    with pytest.raises(ValueError, match="no kind of component 'encodr'; did you mean 'encoder'"):
        asvr.list_components("encodr")


def test_a_pattern_is_a_part_of_a_name_or_a_shell_pattern():
    assert {c.name for c in asvr.list_components("loss", "l1")} == {"L1Loss", "SmoothL1Loss"}
    assert [c.name for c in asvr.list_components("loss", "L1*")] == ["L1Loss"]
    assert asvr.list_components(pattern="nothing like it") == []


def test_a_component_of_ones_own_is_listed_and_torchs_optimisers_on_request():
    @PROJECTORS.register_module()
    class Listed:
        """What it does.

        size: how large.
        """

        def __init__(self, *, in_width, size: int = 3):
            pass

    try:
        found = one("projector", "Listed")
        assert found.summary == "What it does." and found.fields[1].description == "how large."
    finally:
        PROJECTORS.module_dict.pop("Listed")
    ours = {c.name for c in asvr.list_components("optimizer")}
    both = {c.name for c in asvr.list_components("optimizer", inherited=True)}
    assert "SGD" in both - ours and ours < both


def test_every_kind_tells_what_its_registry_is():
    assert component_kinds()["encoder"] is ENCODERS
    assert all(registry.contract for registry in component_kinds().values())


def test_recipes_are_listed_with_the_first_sentence_of_their_header():
    recipes = {recipe.name: recipe for recipe in asvr.list_recipes()}
    assert recipes["asvr_mini"].file == ROOT / "configs/asvr_mini.py"
    assert recipes["asvr_mini"].summary.startswith("The mini run") and recipes["asvr_mini"].command == "train"
    assert recipes["studies/targets_mini"].command == "study"
    assert recipes["tokenizers/semantic_mini"].command == "train-tokenizer"
    assert not [name for name in recipes if "/_" in name or name.startswith("_")]
    assert [r.name for r in recipes.values() if not r.summary or "asvr train" in r.summary or "\n" in r.summary] == []
    assert {recipe.name for recipe in asvr.list_recipes("targets/scenes/v*")} == {
        "targets/scenes/vdep",
        "targets/scenes/viral",
    }


def test_a_config_is_a_path_or_the_name_of_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_file("asvr_mini") == config_file("configs/asvr_mini.py") == ROOT / "configs/asvr_mini.py"
    assert config_file("targets_mini") == ROOT / "configs/studies/targets_mini.py"
    (tmp_path / "asvr_mini").write_text("a file of the user's")
    assert config_file("asvr_mini").read_text() == "a file of the user's"
    for wrong, message in {
        "asvr_mni": "no config file and no recipe 'asvr_mni'; did you mean 'asvr_mini'",
        "viral": "'viral' may be targets/scenes/viral, targets/vicuna7b/viral: give the full name",
        "asvr_vicuna7b.py": "there is no config file asvr_vicuna7b.py",
        ".": "is a folder: give the config file",
    }.items():
        with pytest.raises(ValueError, match=message):
            config_file(wrong)
