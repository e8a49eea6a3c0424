"""asvr show: settings with defaults, the model with what is trained, and samples with their labels."""

import pytest
from run_helpers import ROOT, call_tool

from asvr.commands.show import parser
from asvr.profiling.shown_config import config_text
from asvr.profiling.shown_samples import samples_text
from asvr.recipe import preflight
from asvr.recipe.config import load_config
from asvr.recipe.recipe import Recipe


def show(*arguments: str) -> str:
    done = call_tool("asvr/__main__.py", "show", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_values_of_the_config_and_defaults_are_told_apart():
    lines = config_text(Recipe(load_config("asvr_mini")).stages["finetune"]).splitlines()
    given, default = "    image_size = 128", "    dtype = 'float32'  (default)"
    assert "  encoder: TimmEncoder" in lines and given in lines and default in lines
    assert "  reconstruction[0]: CodeTarget" in lines and "    resample = None  (default)" in lines
    assert not [line for line in lines if "in_width" in line or "load_weights" in line], "the library gives these"
    assert "validation = None  (default)" in lines
    assert "  pack = False  (default)" in lines and "  cache = True" in lines, "fields of a section"


def test_a_config_without_weights_is_shown_but_for_its_samples(monkeypatch, tmp_path):
    monkeypatch.setenv("ASVR_MODEL_ZOO", str(tmp_path))
    monkeypatch.setattr("asvr.base.hub.resolve", lambda name: None)
    said = show("asvr_vicuna7b")
    assert "stage pretrain: starts from scratch, trains projector, heads" in said
    rows = {
        line.split()[1]: [cell.strip() for cell in line.split("│")[2:-1]] for line in said.splitlines() if "│" in line
    }
    assert rows["llm"] == ["HFCausalLM", "6,738.42 M", "no", "all"]
    assert rows["layers"][0] == "3 x DepthLayer" and rows["projector"][-2:] == ["all", "all"]
    last = said.strip().splitlines()[-1]
    assert last.startswith(
        "No samples are shown: the text tokenizer is not on this machine: lmsys/vicuna-7b-v1.5 (hf download"
    )


def test_samples_are_shown_with_their_labels_and_images():
    pytest.importorskip("easy_vqa", reason="the extra 'mini' is not installed")
    options = {"text_tokenizer.corpus.max_images": 20, "data.train.max_images": 20}
    stage = Recipe(load_config("asvr_mini", options)).last
    said = samples_text(stage, preflight.build_meta(stage), 2)
    first = said.split("\n\n")[1].splitlines()
    places = [line.split(":")[0].split(maxsplit=1) for line in first[1:] if line.startswith("  ") and line[2].isdigit()]
    assert [what for _, what in places] == [
        "not learned",
        "image of 64 x 64 pixels, 16 visual tokens",
        "not learned",
        "learned",
    ]
    ends = [tuple(map(int, place.split("-"))) for place, _ in places]
    assert ends[0][0] == 0 and all(after[0] == before[1] + 1 for before, after in zip(ends, ends[1:], strict=False))
    assert f"{ends[-1][1] + 1} positions" in first[0] and ends[1][1] - ends[1][0] + 1 == 16
    assert first[-2].endswith("</s>'") and "</s>=" in first[-1], "the end of the answer is learned"
    assert "reconstructed by semantic (shift 1)" in said and len(said.split("\n\n")) == 3


def test_what_is_wrong_is_told():
    done = call_tool("asvr/__main__.py", "show", "asvr_mini", "--stage", "none")
    assert "the config has no stage 'none'" in done.stderr
    assert "--samples -1: expected at least 0" in call_tool("asvr/__main__.py", "show", "x", "--samples", "-1").stderr
    assert parser().parse_args(["asvr_mini"]).samples == 1


def test_a_config_anywhere_inherits_from_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "_base_ = ['asvr::asvr_mini.py']\n"
        "model = dict(reconstruction=[dict(_base_.model.reconstruction[0], weight=0.9)])\n"
    )
    (tmp_path / "further.py").write_text("_base_ = ['./own.py']\nschedule = dict(steps=7)\n")
    cfg, recipe = load_config("further.py"), load_config(ROOT / "configs/asvr_mini.py")
    assert cfg.model.reconstruction[0].weight == 0.9 and cfg.schedule.steps == 7
    assert cfg.model.encoder == recipe.model.encoder and "_scope_" not in str(cfg.to_dict())
    (tmp_path / "wrong.py").write_text("_base_ = 'asvr::asvr_mni'\n")
    with pytest.raises(
        ValueError, match="wrong.py: its _base_: there is no recipe 'asvr_mni'; did you mean 'asvr_mini'"
    ):
        load_config("wrong.py")
    for name in ("asvr_mini", "configs/asvr_mini.py"):
        (tmp_path / "wrong.py").write_text(f"_base_ = {name!r}\n")
        with pytest.raises(ValueError, match="no such file; the recipe of that name is 'asvr::asvr_mini'$"):
            load_config("wrong.py")


def test_a_recipes_own_modules_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("examples/custom_components").model.encoder.type == "ColorPatches"
