"""A study's file: its fields, its arms and their configs."""

import ast
import re
import sys

import pytest
from page_snippets import Reader
from run_helpers import ROOT
from study_helpers import BASE, write_files

from asvr.recipe.recipe import Recipe
from asvr.studies.study_file import arm_config, load_study


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("baseline = 'non'", "baseline='non': expected an arm; did you mean 'none'?"),
        (
            "compare = [('none', 'lat')]",
            r"compare=\['none', 'lat'\]: expected two arms, not 'lat'; did you mean 'late'?",
        ),
        ("compare = [('none',)]", r"compare=\[\('none',\)\]: expected a list of pairs of arms"),
        ("groups = dict(ocr=['wrod'])", "groups: no question of kind 'wrod'; did you mean 'word'?"),
        ("seeds = [1, 1]", r"seeds=\[1, 1\]: expected a list of different whole numbers"),
        ("arms['late']['seeds'] = [2]", r"arms.late.seeds=\[2\]: expected some of the study's seeds \[0, 1\]"),
        ("arms['late']['seeds'] = 1", "arms.late.seeds=1: expected some of the study's seeds"),
        ("arms['none']['seeds'] = [0]", "arms.none.seeds: the baseline has all seeds of the study"),
        ("decides = [('none', 'lat')]", r"decides=\['none', 'lat'\]: expected two arms, not 'lat'; did you mean"),
        ("decides = [('none', 'none')]", r"decides=\['none', 'none'\]: expected two different arms"),
        (
            "decides = [('late', 'none'), ('none', 'late')]",
            r"decides=\['none', 'late'\]: .* and each pair once",
        ),
        (
            "arms['late']['seeds'] = [0]; arms['more'] = dict(seeds=[1]); decides = [('late', 'more')]",
            r"decides=\['late', 'more'\]: these arms have no common seed",
        ),
        ("arm = 1", "- arm: unknown field; did you mean 'arms'?"),
        (
            "compare = []; arms = dict(none=dict(modle=dict()))",
            "arm 'none': .*modle: unknown section; did you mean 'model'?",
        ),
        (
            "compare = []; arms = dict(none=dict(text_tokenizer=dict(corpus=dict(split='study:pixl'))))",
            "split='study:pixl': expected a visual tokenizer of `tokenizers`; known: none",
        ),
        (
            "compare = []; arms = dict(none=dict(model=dict(reconstruction=[])), own='own.py')",
            "arm 'own': .*own.py differs from .*base.py in data, stages.finetune: .* may differ only in its model",
        ),
        (
            "compare = []; arms = dict(none=dict(model=dict(reconstruction=[])), own='tokenizer.py')",
            "arm 'own': .*tokenizer.py differs from .*base.py in .*: .* may differ only in its model",
        ),
        (
            "compare = []; arms = dict(none=dict(), own=3)",
            "arms.own=3: expected a dict of changes, the path of",
        ),
        ("compare = []; arms = dict(none=dict(), own=dict(config=3))", "arms.own=.*: expected a dict of changes"),
        (
            "compare = []; arms = dict(none=dict(), own=dict(custom_imports='my_target'))",
            "arm 'own': custom_imports='my_target': expected dict",
        ),
        (
            "compare = []; arms = dict(none=dict(), own=dict(custom_imports=dict(imports=['no_such_target'])))",
            "arm 'own': custom_imports: .*no_such_target",
        ),
    ],
)
def test_mistakes_are_told_before_the_first_run(change, message, tmp_path):
    write_files(tmp_path, change)
    own = "_base_ = ['./base.py']\ndata = dict(micro_batch=2)\nstages = dict(finetune=dict(schedule=dict(steps=3)))\n"
    (tmp_path / "own.py").write_text(own)
    (tmp_path / "tokenizer.py").write_text("tokenizer = dict(type='LatentEncoder')\n")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_study(tmp_path / "study.py")


def test_an_arm_may_have_a_config_of_its_own_and_change_it(tmp_path):
    (tmp_path / "own.py").write_text("_base_ = ['./base.py']\nmodel = dict(visual_attention='bidirectional')\n")
    arms = (
        "arms |= dict(own='own.py', changed=dict(config='own.py', model=dict(reconstruction=[]), optim=dict(lr=1e-3)))"
    )
    study = load_study(write_files(tmp_path, arms))
    own, changed = (arm_config(study, arm, 1, tmp_path) for arm in ("own", "changed"))
    assert own.model.visual_attention == changed.model.visual_attention == "bidirectional"
    assert changed.model.reconstruction == [] and (changed.optim.lr, changed.runtime.seed) == (1e-3, 1)


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Modules of the user in the current directory. Each registers a component, and none is imported yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = ("own_target_of_base", "own_loss_of_arm", "own_part_of_change")
    for name in names:
        (tmp_path / f"{name}.py").write_text("HERE = True\n")
    yield names
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("base", "own", "change", "expected"),
    [
        ("", "", "", None),
        ("['own_target_of_base']", "", "", [0]),
        ("'own_target_of_base'", "", "", [0]),
        ("", "['own_loss_of_arm']", "", [1]),
        ("['own_target_of_base']", "['own_loss_of_arm']", "", [0, 1]),
        ("['own_target_of_base']", "['own_target_of_base', 'own_loss_of_arm']", "", [0, 1]),
        ("['own_target_of_base']", "", "'own_part_of_change'", [0, 2]),
        ("['own_target_of_base']", "['own_loss_of_arm']", "['own_part_of_change']", [0, 1, 2]),
    ],
)
def test_an_arm_gets_the_imports_of_the_study_too(tmp_path, modules, base, own, change, expected):
    def line(names):
        return f"custom_imports = dict(imports={names})\n" if names else ""

    (tmp_path / "recipe.py").write_text(BASE.format(root=ROOT) + line(own))
    arm = dict(config="recipe.py", model=dict(reconstruction=[]))
    arms = f"arms['recipe'] = dict({arm!r}"
    arms += f", custom_imports=dict(imports={change}))" if change else ")"
    write_files(tmp_path, arms)
    (tmp_path / "base.py").write_text(BASE.format(root=ROOT) + line(base))
    study = load_study(tmp_path / "study.py")
    imports = arm_config(study, "recipe", 0, tmp_path).get("custom_imports", {}).get("imports")
    assert imports == (expected and [modules[i] for i in expected])
    assert all(modules[i] in sys.modules for i in expected or [])
    assert arm_config(study, "late", 0, tmp_path).get("custom_imports") == (
        dict(imports=ast.literal_eval(base)) if base else None  # as it is in the config
    )


@pytest.fixture
def reader(tmp_path, monkeypatch):
    reader = Reader(tmp_path, monkeypatch)
    yield reader
    reader.leave()


def test_a_target_of_ones_own_is_compared_with_a_recipe(tmp_path, reader):
    """The study of the page, with a target of its own, a recipe of the library, and fewer steps."""
    page, target = ((ROOT / f"docs/guides/{name}.md").read_text() for name in ("studies", "own-target"))
    files = re.findall(r"```(?:python|text)\n# ((?:my_base|mine_against_viral)\.py)\n(.*?)```", page, re.S)
    assert [name for name, _ in files] == ["my_base.py", "mine_against_viral.py"]
    for name, text in files:
        (tmp_path / name).write_text(text)
    reader.run(re.search(r"```python\n(# my_target.py\n.*?)```", target, re.S)[1])
    study = load_study(tmp_path / "mine_against_viral.py")
    recipes = {arm: Recipe(arm_config(study, arm, 0, tmp_path)) for arm in study.arms}
    assert [recipe.last.model.reconstruction[0].type for arm, recipe in recipes.items() if arm != study.baseline] == [
        "PatchColours",
        "FeatureTarget",
    ]
    steps = [{name: stage.schedule.steps for name, stage in recipe.stages.items()} for recipe in recipes.values()]
    assert steps == [dict(pretrain=50, finetune=100)] * 3
    assert {recipe.last.optim.precision for recipe in recipes.values()} == {"float32"}
    assert all(recipe.config.custom_imports.imports == ["my_target"] for recipe in recipes.values())


def test_the_study_of_methods_has_an_arm_for_each_of_them():
    study = load_study(ROOT / "configs/studies/methods.py")
    recipes = {file.stem for file in (ROOT / "configs/targets/scenes").glob("[!_]*.py")}
    assert recipes <= set(study.arms)


@pytest.mark.parametrize("file", sorted((ROOT / "configs/studies").glob("[!_]*.py")), ids=lambda file: file.stem)
def test_the_studies_are_right(file):
    study = load_study(file)
    assert f"asvr study studies/{file.stem}" in file.read_text()
    kinds = [kind for group in study.groups.values() for kind in group]
    asked = Recipe(arm_config(study, study.baseline, 0, file.parent)).stages["finetune"]
    assert sorted(kinds) == sorted(asked.evaluation.dataset.kinds) == sorted(asked.data.train.kinds)
    for arm in study.arms:
        for stage in ("pretrain", "finetune"):
            Recipe(arm_config(study, arm, 0, file.parent)).stages[stage]


def test_a_recipe_of_the_library_stands_in_place_of_a_path(tmp_path):
    file = tmp_path / "study.py"
    arms = dict(none=dict(model=dict(reconstruction=[])), viral="asvr::targets/scenes/viral")
    file.write_text(f"config, seeds, baseline, arms = 'asvr::studies/_base_scenes', [0], 'none', {arms!r}")
    study = load_study(file)
    assert study.config == str(ROOT / "configs/studies/_base_scenes.py")
    assert study.arms.viral == dict(config=str(ROOT / "configs/targets/scenes/viral.py"))
    file.write_text(file.read_text().replace("scenes/viral", "scenes/vira"))
    with pytest.raises(ValueError, match="viral"):
        load_study(file)
