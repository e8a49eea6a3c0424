"""A tiny study: two arms, two seeds; what is finished is kept, and the report says what the answers say."""

import json
import subprocess
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest
from run_helpers import ROOT, call_tool

from asvr.commands.scenes import main as write_scenes
from asvr.recipe.recipe import Recipe
from asvr.studies import run as engine_study
from asvr.studies.comparison import compare
from asvr.studies.report import markdown
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
    assert (folder / "out/radar.png").is_file() and (folder / "out/curves.png").is_file()
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
    asked = run(folder, "--report")
    assert asked.returncode == 1 and "late/seed_1: this run is not finished" in asked.stderr
    weights = folder / "out/none/seed_0/finetune/checkpoints/step_00000003/model.safetensors"
    before = weights.stat().st_mtime_ns
    again = run(folder)
    assert again.returncode == 0, again.stderr
    assert weights.stat().st_mtime_ns == before and (folder / "out/late/seed_1/results.json").is_file()


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
