"""A tiny study: two arms, two seeds; what is finished is kept, and the report says what the answers say."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from run_helpers import ROOT, call_tool

import asvr
from asvr.commands.scenes import main as write_scenes
from asvr.recipe.recipe import Recipe
from asvr.studies import run as engine_study
from asvr.studies.comparison import compare
from asvr.studies.existing import require_same_arms
from asvr.studies.plots import arm_colours, draw_curves, draw_groups, groups_file
from asvr.studies.report import heading, markdown
from asvr.studies.results import collect
from asvr.studies.run import threads_of_a_run
from asvr.studies.study_file import arm_config, load_study

BASE = """
_base_ = ['{root}/configs/asvr_mini.py']
text_tokenizer = dict(vocab_size=300, corpus=dict(_delete_=True, type='Scenes', scenes=10, captions=True))
model = dict(
    encoder=dict(image_size=64),
    llm=dict(arch=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1)),
    reconstruction=[dict(
        name='semantic',
        tokenizer=dict(type='SemanticTokenizer', depth=2, codebook_size=8),
        fit=dict(vectors_per_code=8, iterations=2),
        head=dict(type='DepthTransformerHead', width=16, layers=1, num_heads=4),
        weight=0.3, shift=1)])
data = dict(train=dict(_delete_=True, type='Scenes', scenes=20, size=64), micro_batch=4, global_batch=8)
schedule = dict(steps=3)
stages = dict(
    _delete_=True,
    pretrain=dict(init='scratch', train=['projector', 'heads', 'llm'], evaluation=None),
    finetune=dict(train=['projector', 'heads', 'llm']))
evaluation = dict(dataset=dict(_delete_=True, type='Scenes', split='test', scenes=6, per_scene=None, size=64,
    kinds=['what', 'kind', 'count', 'word', 'knowledge', 'where', 'left_of', 'larger', 'color', 'pose', 'exists']))
runtime = dict(log_interval=1, device='cpu')
"""
STUDY = """
config = 'base.py'
seeds = [0, 1]
baseline = 'none'
compare = [('none', 'late')]
groups = dict(general=['what', 'kind', 'count'], ocr=['word'])
_semantic = dict(
    name='semantic',
    tokenizer=dict(type='SemanticTokenizer', depth=2, codebook_size=8),
    fit=dict(vectors_per_code=8, iterations=2),
    head=dict(type='DepthTransformerHead', width=16, layers=1, num_heads=4),
    weight=0.3, shift=1)
arms = dict(
    none=dict(model=dict(reconstruction=[])),
    late=dict(stages=dict(pretrain=dict(model=dict(reconstruction=[dict(_semantic, weight=0.0)])))))
"""


class Here(Executor):
    """Does the work in this process: starting one for every run takes seconds."""

    def __init__(self, *args, **kwargs):
        pass

    def submit(self, work, *args):
        future = Future()
        future.set_result(work(*args))
        return future


def run(folder, *arguments, pool: type[Executor] = Here) -> subprocess.CompletedProcess:
    with patch.object(engine_study, "ProcessPoolExecutor", pool):
        return call_tool("tools/study.py", folder / "study.py", "--out", folder / "out", *arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    pytest.importorskip("easy_vqa", reason="the extra 'mini' is not installed")
    folder = tmp_path_factory.mktemp("study")
    (folder / "base.py").write_text(BASE.format(root=ROOT))
    (folder / "study.py").write_text(STUDY)
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_every_arm_and_seed_has_run(finished):
    folder, text = finished
    runs = [folder / f"out/{arm}/seed_{seed}" for arm in ("none", "late") for seed in (0, 1)]
    assert all((run / "summary.png").is_file() for run in runs)
    assert len([p for p in (folder / "out/cache").iterdir() if p.is_dir()]) == 1  # features serve all
    assert not (runs[0] / "cache").exists()
    last = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in runs]
    assert ["loss_semantic" in line for line in last] == [False, False, True, True]
    assert len({line["loss_text"] for line in last}) == 4
    first = json.loads((runs[2] / "metrics.jsonl").read_text().splitlines()[0])
    assert first["stage"] == "pretrain" and first["loss"] == pytest.approx(first["loss_text"])  # weight 0 there
    assert (folder / "out/bars.png").is_file() and (folder / "out/curves.png").is_file()
    assert (folder / "out/report.md").read_text() in text


def test_the_report_is_what_the_answers_say(finished):
    folder, _ = finished
    study = load_study(folder / "study.py")
    found = collect(study, folder / "out")
    result = json.loads((folder / "out/report.json").read_text())
    for arm, runs in found.items():
        answers = [a for run in runs for a in run["answers"] if a["kind"] == "word"]
        share = result["arms"][arm]["groups"]["ocr"]["share"]
        assert share == pytest.approx(np.mean([a["right"] for a in answers]))
        kinds = result["arms"][arm]["kinds"]
        assert list(kinds) == ["what", "kind", "count", "word"] and kinds["word"] == pytest.approx(share)
    [pair], late = result["pairs"], result["arms"]["late"]["groups"]
    assert (pair["first"], pair["second"]) == ("none", "late")
    for name, gain in pair["groups"].items():
        assert (gain["gain"], gain["p"]) == (pytest.approx(-late[name]["gain"]), late[name]["p"])
    assert result["questions"] == dict(general=18, ocr=6, all=24) and result["scenes"] == 6
    for run in found["late"]:  # as if this arm had answered everything right, and the baseline nothing
        run["answers"] = [dict(a, right=True) for a in run["answers"]]
    for run in found["none"]:
        run["answers"] = [dict(a, right=False) for a in run["answers"]]
    groups = compare(study, found)["arms"]["late"]["groups"]
    assert groups["ocr"] | dict(p=0) == dict(share=1.0, by_seed=[1.0, 1.0], gain=1.0, low=None, high=None, p=0)
    assert groups["ocr"]["p"] == pytest.approx(2 / 2**12)
    text = markdown(compare(study, found))
    assert "| late | +100.0 (-), p " in text and "| none minus late | -100.0 (-), p " in text


@pytest.mark.parametrize("answers", ["all wrong", "all right", "the same"])
def test_without_spread_the_report_has_no_interval_and_says_why(finished, answers):
    folder, _ = finished
    study = load_study(folder / "study.py")
    found = collect(study, folder / "out")
    of_first = [i % 3 == 0 for i in range(len(found["none"][0]["answers"]))]
    right = {"all wrong": [False] * 999, "all right": [True] * 999, "the same": of_first}[answers]
    for run in [run for runs in found.values() for run in runs]:
        run["answers"] = [dict(a, right=r) for a, r in zip(run["answers"], right, strict=False)]
    result = compare(study, found)
    assert json.loads(json.dumps(result))["arms"]["late"]["groups"]["ocr"]["low"] is None
    assert set(result["detectable"].values()) == {None}
    lines = markdown(result).splitlines()
    assert "| late | +0.0 (-), p - | +0.0 (-), p - | +0.0 (-), p - |" in lines and "| - | - | - |" in lines
    [of_arms, of_pairs, of_size] = [line for line in lines if line.startswith("`-`: no spread, so ")]
    assert "cannot be estimated: late (general, ocr, all)." in of_arms and "Ask easier or harder questions" in of_arms
    assert "none minus late (general, ocr, all)" in of_pairs and "the seeds of the baseline agree in" in of_size
    assert "+0.0 to +0.0" not in "".join(lines)


def test_what_is_finished_is_kept(finished):
    folder, _ = finished
    (folder / "out/late/seed_1/results.json").unlink()
    weights = folder / "out/none/seed_0/finetune/checkpoints/step_00000003/model.safetensors"
    before = weights.stat().st_mtime_ns
    again = run(folder)
    assert again.returncode == 0, again.stderr
    assert weights.stat().st_mtime_ns == before and (folder / "out/late/seed_1/results.json").is_file()


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished study, without weights."""
    folder, _ = finished
    for name in ("base.py", "study.py"):
        shutil.copy(folder / name, tmp_path)
    leave = shutil.ignore_patterns("checkpoints", "cache", "questions")
    shutil.copytree(folder / "out", tmp_path / "out", ignore=leave)
    for file in (tmp_path / "out").glob("*.*"):
        file.unlink()
    return tmp_path


def unfinish(folder, *names):
    for name in names:
        (folder / "out" / name / "results.json").unlink()


@pytest.mark.parametrize(
    ("gone", "missing", "seeds"),
    [
        ([], [], dict(none=[0, 1], late=[0, 1])),
        (["late/seed_1"], ["late, seed 1 (not finished)"], dict(none=[0, 1], late=[0])),
        (
            ["none/seed_0"],
            ["none, seed 0 (not finished)", "late, seed 0 (the baseline lacks it)"],
            dict(none=[1], late=[1]),
        ),
    ],
)
def test_a_report_of_finished_runs_says_what_is_missing(copied, finished, gone, missing, seeds):
    unfinish(copied, *gone)
    done = run(copied, "--report")
    assert done.returncode == 0, done.stderr
    text = (copied / "out/report.md").read_text()
    result = json.loads((copied / "out/report.json").read_text())
    assert result["about"]["missing"] == missing and all(name in text for name in missing)
    assert ("This report is not complete" in text) == bool(missing)
    assert {arm: own["seeds"] for arm, own in result["arms"].items()} == seeds
    whole = compare(load_study(finished[0] / "study.py"), collect(load_study(copied / "study.py"), finished[0] / "out"))
    late, complete = (r["arms"]["late"]["groups"]["all"] for r in (result, whole))
    assert late["by_seed"] == [complete["by_seed"][seed] for seed in seeds["late"]]
    base = whole["arms"]["none"]["groups"]["all"]["by_seed"]
    expected = np.mean([complete["by_seed"][seed] - base[seed] for seed in seeds["late"]])
    assert late["gain"] == pytest.approx(expected)
    assert f"| late | {seeds['late'][0]} | " in text if gone == ["late/seed_1"] else "| arm | seeds |" not in text


@pytest.mark.parametrize(
    "gone", [["late/seed_0", "late/seed_1"], ["none/seed_0", "none/seed_1"], ["none/seed_0", "late/seed_1"]]
)
def test_there_is_no_report_without_a_common_seed(copied, gone):
    unfinish(copied, *gone)
    done = run(copied, "--report")
    assert done.returncode == 1 and not (copied / "out/report.md").exists()
    [line] = done.stderr.strip().splitlines()
    assert "no report: it needs finished runs of the baseline 'none' and of another arm with the same seed" in line
    assert f"out/{gone[0]}: this run is not finished" in line or f"out/{gone[1]}: this run is not finished" in line


def test_a_report_of_a_study_that_never_ran_makes_no_folder(tmp_path):
    (tmp_path / "base.py").write_text(BASE.format(root=ROOT))
    (tmp_path / "study.py").write_text(STUDY)
    done = run(tmp_path, "--report")
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    [line] = done.stderr.strip().splitlines()
    assert "out: there is no run of this study; run the same command without --report" in line


def test_the_report_begins_with_what_was_compared(finished):
    folder, _ = finished
    result = json.loads((folder / "out/report.json").read_text())
    lines = (folder / "out/report.md").read_text().splitlines()
    assert lines[:8] == [
        "# study",
        "",
        f"- Date: {result['about']['date']}. asvr {asvr.__version__}.",
        f"- Config: `{folder / 'base.py'}`",
        "- Steps: every arm: pretrain 3, finetune 3",
        "- Arms: `none` (baseline), `late`",
        "- Seeds: 0, 1",
        "- Questions: general 18, ocr 6, all 24. Scenes: 6.",
    ]
    compared = [result["arms"]["late"]["groups"], result["pairs"][0]["groups"]]
    intervals = sum(group["low"] is not None for groups in compared for group in groups.values())
    assert lines[8].startswith(f"- Intervals: {intervals}. If no arm had an effect, about 5 % of them")
    assert "So `all` is without them. The loss and the codes are measured on all questions" in lines[9]
    assert "**Only 2 seeds.**" in lines[10]


@pytest.mark.parametrize(("seeds", "warning"), [(1, "Only one seed."), (2, "Only 2 seeds."), (3, None)])
def test_few_seeds_are_a_warning(finished, seeds, warning):
    folder, _ = finished
    study = load_study(folder / "study.py")
    found = collect(study, folder / "out")
    study.seeds = list(range(seeds))
    found = {arm: [dict(runs[0], seed=seed) for seed in study.seeds] for arm, runs in found.items()}
    about = dict(study="a", date="", asvr="", config="", intervals=6, missing=[])
    text = heading(about, compare(study, found))
    assert (warning in text) if warning else ("**Only" not in text)


def test_numbers_of_targets_are_in_the_report(finished):
    folder, _ = finished
    study = load_study(folder / "study.py")
    found = collect(study, folder / "out")
    assert found["late"][0]["numbers"] == {} and "Other numbers" not in markdown(compare(study, found))
    for value, run_of_late in zip((0.5, 1.0), found["late"], strict=True):
        run_of_late["numbers"] = dict(right_edges=value, entropy_semantic=[value, 2.0])
    result = compare(study, found)
    assert result["arms"]["late"]["numbers"] == dict(right_edges=0.75, entropy_semantic=[0.75, 2.0])
    lines = markdown(result).splitlines()
    assert "| arm | right_edges | entropy_semantic |" in lines
    assert "| none | - | - |" in lines and "| late | 0.75 | 0.75 / 2 |" in lines


def drawn(draw) -> list:
    """The axes of the figure that a function draws."""
    import matplotlib.pyplot as plt

    with patch.object(plt, "close", lambda figure: kept.append(figure)):
        kept: list = []
        draw()
    [figure] = kept
    plt.close(figure)
    return figure.axes


@pytest.mark.parametrize("groups", [1, 2, 3, 5])
def test_an_arm_has_one_colour_in_all_plots(finished, tmp_path, groups):
    folder, _ = finished
    study = load_study(folder / "study.py")
    kinds = ["what", "kind", "count", "word", "where"][:groups]
    study.groups = {f"group of {kind}": [kind] for kind in kinds}
    found = collect(study, folder / "out")
    result, file = compare(study, found), tmp_path / "plot.png"
    [axis] = drawn(lambda: draw_groups(result, file))
    assert groups_file(result) == ("radar.png" if groups >= 3 else "bars.png")
    assert axis.name == ("polar" if groups >= 3 else "rectilinear")
    handles, labels = axis.get_legend_handles_labels()
    losses, codes = drawn(lambda: draw_curves(found, file, baseline="none"))
    lines = {line.get_label().split(":")[0]: line.get_color() for line in [*losses.lines, *codes.lines]}
    of_groups = {
        label: handle.get_color() if groups >= 3 else handle.patches[0].get_facecolor()[:3]
        for label, handle in zip(labels, handles, strict=True)
    }
    assert of_groups.keys() == lines.keys() == {"none", "late"} and to_rgb(lines["none"]) == (0, 0, 0)
    assert {arm: to_rgb(c) for arm, c in of_groups.items()} == {arm: to_rgb(c) for arm, c in lines.items()}


@pytest.mark.parametrize("number", [2, 11, 21, 30])
def test_arms_have_different_colours(number):
    import matplotlib.pyplot as plt

    colours = arm_colours(plt, [f"arm {i}" for i in range(number)], "arm 1")
    assert len({to_rgb(colour) for colour in colours.values()}) == number


def test_other_questions_are_asked_of_every_run_that_sees_pictures(finished, monkeypatch):
    """A LLaVA file of scenes, of fewer kinds than the study's groups name."""
    folder, _ = finished
    arguments = [str(folder / "more"), "--scenes", "3", "--kinds", "word", "color", "--size", "64"]
    monkeypatch.setattr("sys.argv", ["scenes", *arguments])
    write_scenes()
    asked = ("--questions", folder / "more.json")
    done = run(folder, *asked, "--image-folder", folder / "more")
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "out/questions/more/report.json").read_text())
    assert result["questions"] == dict(ocr=3, all=3) and result["scenes"] == 3
    assert result["about"]["study"] == "study, questions of more.json"
    text = (folder / "out/questions/more/report.md").read_text()
    assert text in done.stdout and "in no group and are left out: color." in text
    study = load_study(folder / "study.py")
    study.arms.late.evaluation = dict(dataset=dict(with_images=False))  # as of a blind model
    assert collect(study, folder / "out", questions=folder / "more.json").keys() == {"none"}
    study.baseline = "late"
    with pytest.raises(ValueError, match="baseline 'late' is asked without images"):
        collect(study, folder / "out", questions=folder / "more.json")
    questions = json.loads((folder / "more.json").read_text())
    (folder / "more.json").write_text(json.dumps(questions[:-1]))
    stale = run(folder, "--report", *asked)
    assert stale.returncode == 1 and "was not asked the current questions" in stale.stderr


@pytest.mark.parametrize(
    ("change", "told", "last"),
    [
        (
            "arms['late']['optim'] = dict(lr=0.5)",
            ["arm 'late', stage pretrain: optim.lr: ", "in the checkpoint, 0.5 now"],
            "late",
        ),
        (
            "arms['none']['stages'] = dict(finetune=dict(schedule=dict(steps=4)))",
            ["arm 'none', stage finetune: schedule.steps: 3 in the checkpoint, 4 now"],
            "none",
        ),
        (
            "arms = {arm: dict(own, text_tokenizer=dict(vocab_size=280)) for arm, own in arms.items()}",
            ["arm 'none', stage pretrain: text_tokenizer.fingerprint: ", "arm 'late', stage pretrain: text_tokenizer"],
            "late",
        ),
    ],
)
def test_an_arm_that_has_changed_is_told_before_any_run(finished, change, told, last, tmp_path):
    folder, _ = finished
    shutil.copy(folder / "base.py", tmp_path)
    (tmp_path / "study.py").write_text(STUDY + change + "\n")
    for file in (folder / "out").glob("*/seed_?/*/checkpoints/*/checkpoint.json"):
        copy = tmp_path / file.relative_to(folder)
        copy.parent.mkdir(parents=True)
        shutil.copy(file, copy)
    with patch.object(engine_study, "_one", lambda *_: pytest.fail("a run has started")):
        done = run(tmp_path)
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    assert all(part in line for part in told) and "--resume" not in line and "--work-dir" not in line
    assert "Undo the change in the study's file, give another --out, or remove the folders of these arms: " in line
    assert line.endswith(str(tmp_path / "out" / last))


def test_settings_that_may_change_do_not_stop_a_study(finished):
    folder, _ = finished
    study = load_study(folder / "study.py")
    require_same_arms(study, folder / "out")
    study.arms.late.data = dict(micro_batch=2)
    study.arms.late.evaluation = dict(dataset=dict(scenes=3))
    study.seeds = [0, 1, 2]
    require_same_arms(study, folder / "out")


def test_a_run_that_fails_is_named_and_the_others_go_on(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "base.py").write_text((folder / "base.py").read_text())
    broken = "arms = dict(bad=dict(data=dict(train=dict(scenes=0))), none=dict(model=dict(reconstruction=[])))\n"
    (tmp_path / "study.py").write_text("config = 'base.py'\nseeds = [0]\nbaseline = 'none'\n" + broken)
    done = run(tmp_path, "--jobs", "2", pool=ProcessPoolExecutor)
    assert done.returncode == 1 and "1 run(s) failed" in done.stderr
    assert "bad, seed 0: ValueError" in done.stderr and "scenes=0: expected at least 1" in done.stderr
    assert (tmp_path / "out/none/seed_0/results.json").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("baseline = 'non'", "baseline='non': no such arm; did you mean 'none'?"),
        ("compare = [('none', 'lat')]", "compare: no arm 'lat'; did you mean 'late'?"),
        ("compare = [('none',)]", r"compare: \('none',\): expected two arms"),
        ("groups = dict(ocr=['wrod'])", "groups: no question of kind 'wrod'; did you mean 'word'?"),
        ("seeds = [1, 1]", r"seeds=\[1, 1\]: expected different numbers"),
        ("arm = 1", "arm: unknown; did you mean 'arms'?"),
        (
            "compare = []; arms = dict(none=dict(modle=dict()))",
            "arm 'none': .*modle: unknown section; did you mean 'model'?",
        ),
        (
            "compare = []; arms = dict(none=dict(text_tokenizer=dict(corpus=dict(split='study:pixl'))))",
            "'study:pixl': the study has no tokenizer",
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
    (tmp_path / "base.py").write_text(BASE.format(root=ROOT))
    own = "_base_ = ['./base.py']\ndata = dict(micro_batch=2)\nstages = dict(finetune=dict(schedule=dict(steps=3)))\n"
    (tmp_path / "own.py").write_text(own)
    (tmp_path / "tokenizer.py").write_text("tokenizer = dict(type='LatentEncoder')\n")
    (tmp_path / "study.py").write_text(STUDY + change + "\n")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_study(tmp_path / "study.py")


def test_an_arm_may_have_a_config_of_its_own_and_change_it(tmp_path):
    (tmp_path / "base.py").write_text(BASE.format(root=ROOT))
    (tmp_path / "own.py").write_text("_base_ = ['./base.py']\nmodel = dict(visual_attention='bidirectional')\n")
    arms = (
        "arms |= dict(own='own.py', changed=dict(config='own.py', model=dict(reconstruction=[]), optim=dict(lr=1e-3)))"
    )
    (tmp_path / "study.py").write_text(STUDY + arms + "\n")
    study = load_study(tmp_path / "study.py")
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

    (tmp_path / "base.py").write_text(BASE.format(root=ROOT) + line(base))
    (tmp_path / "recipe.py").write_text(BASE.format(root=ROOT) + line(own))
    arm = dict(config="recipe.py", model=dict(reconstruction=[]))
    arms = f"arms['recipe'] = dict({arm!r}"
    arms += f", custom_imports=dict(imports={change}))" if change else ")"
    (tmp_path / "study.py").write_text(STUDY + arms + "\n")
    study = load_study(tmp_path / "study.py")
    imports = arm_config(study, "recipe", 0, tmp_path).get("custom_imports", {}).get("imports")
    assert imports == (expected and [modules[i] for i in expected])
    assert all(modules[i] in sys.modules for i in expected or [])
    assert arm_config(study, "late", 0, tmp_path).get("custom_imports") == (
        dict(imports=eval(base)) if base else None  # as it is in the config
    )


def test_a_target_of_ones_own_is_compared_with_a_recipe(tmp_path, monkeypatch):
    """The study of the page, with a target of its own, a recipe of the library, and fewer steps."""
    page = (ROOT / "docs/guides/studies.md").read_text()
    files = re.findall(r"```(?:python|text)\n# ((?:my_base|mine_against_viral)\.py)\n(.*?)```", page, re.S)
    assert [name for name, _ in files] == ["my_base.py", "mine_against_viral.py"]
    monkeypatch.chdir(tmp_path)
    for name, text in files:
        (tmp_path / name).write_text(text)
    target = (ROOT / "docs/guides/own-target.md").read_text()
    (tmp_path / "my_target.py").write_text(re.search(r"```python\n# my_target.py\n(.*?)```", target, re.S)[1])
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


@pytest.mark.parametrize(
    ("jobs", "given", "threads"), [(1, None, 8), (2, None, 4), (2, "1", 1), (2, "6", 4), (9, "0", 1)]
)
def test_a_run_has_its_part_of_the_cores_or_fewer(monkeypatch, jobs, given, threads):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads_of_a_run(jobs) == str(threads)


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
