"""A tiny study: two arms, two seeds; what is finished is kept, and the report says what the answers say."""

import json
import shutil
from unittest.mock import patch

import numpy as np
import pytest
from study_helpers import run, write_files

from asvr.commands.scenes import main as write_scenes
from asvr.studies import run as engine_study
from asvr.studies.comparison import compare
from asvr.studies.existing import require_same_arms
from asvr.studies.processes import Processes
from asvr.studies.report_tables import markdown
from asvr.studies.results import collect
from asvr.studies.run import threads_of_a_run
from asvr.studies.study_file import load_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    pytest.importorskip("easy_vqa", reason="the extra 'mini' is not installed")
    folder = tmp_path_factory.mktemp("study")
    write_files(folder)
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
    for own in found["late"]:  # as if this arm had answered everything right, and the baseline nothing
        own["answers"] = [dict(a, right=True) for a in own["answers"]]
    for own in found["none"]:
        own["answers"] = [dict(a, right=False) for a in own["answers"]]
    groups = compare(study, found)["arms"]["late"]["groups"]
    assert groups["ocr"] | dict(p=0) == dict(share=1.0, by_seed=[1.0, 1.0], gain=1.0, low=None, high=None, p=0)
    assert groups["ocr"]["p"] == pytest.approx(2 / 2**12)
    text = markdown(compare(study, found))
    assert "| late | +100.0 (-), p " in text and "| none minus late | -100.0 (-), p " in text


def test_what_is_finished_is_kept(finished):
    folder, _ = finished
    (folder / "out/late/seed_1/results.json").unlink()
    assert run(folder, "--report").returncode == 0
    assert "left out: late, seed 1 (not finished)." in (folder / "out/report.md").read_text()
    weights = folder / "out/none/seed_0/finetune/checkpoints/step_00000003/model.safetensors"
    before = weights.stat().st_mtime_ns
    again = run(folder)
    assert again.returncode == 0, again.stderr
    assert weights.stat().st_mtime_ns == before and (folder / "out/late/seed_1/results.json").is_file()
    assert "not complete" not in (folder / "out/report.md").read_text()


def test_an_arm_may_have_fewer_seeds(finished, tmp_path):
    shutil.copytree(finished[0] / "out", tmp_path / "out")
    write_files(tmp_path, "arms['late']['seeds'] = [1]")
    shutil.rmtree(tmp_path / "out/late/seed_0")
    assert run(tmp_path).returncode == 0 and not (tmp_path / "out/late/seed_0").exists()
    result = json.loads((tmp_path / "out/report.json").read_text())
    assert {arm: own["seeds"] for arm, own in result["arms"].items()} == dict(none=[0, 1], late=[1])
    assert result["about"]["missing"] == []


def test_only_some_arms_are_trained(finished, tmp_path):
    write_files(tmp_path)
    shutil.copytree(finished[0] / "out/late", tmp_path / "out/late")
    shutil.rmtree(tmp_path / "out/late/seed_0")
    shutil.copytree(finished[0] / "out/cache", tmp_path / "out/cache")
    done = run(tmp_path, "--arms", "none")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("out/*/seed_?")) == ["seed_0", "seed_1", "seed_1"]
    about = json.loads((tmp_path / "out/report.json").read_text())["about"]
    assert about["missing"] == ["late, seed 0 (not finished)"]
    shutil.rmtree(tmp_path / "out/none")
    done = run(tmp_path, "--arms", "late")
    assert done.returncode == 0 and "no report yet: it needs a finished run of the baseline 'none'" in done.stdout
    wrong = run(tmp_path, "--arms", "nome")
    assert wrong.returncode == 1 and "has no arm 'nome'; did you mean 'none'?" in wrong.stderr
    for option in (("--report",), ("--questions", tmp_path / "study.py")):
        refused = run(tmp_path, "--arms", "none", *option)
        assert refused.returncode == 1 and "cannot be used with --" in refused.stderr


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
    write_files(tmp_path, change)
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
    done = run(tmp_path, "--jobs", "2", processes=Processes)
    assert done.returncode == 1 and "1 run(s) failed" in done.stderr
    assert "bad, seed 0: ValueError" in done.stderr and "scenes=0: expected at least 1" in done.stderr
    assert (tmp_path / "out/none/seed_0/results.json").is_file() and "runs, add --report" in done.stderr
    done = run(tmp_path, "--arms", "bad")
    assert done.returncode == 1 and "runs, give --report in place of --arms" in done.stderr


@pytest.mark.parametrize(
    ("jobs", "given", "threads"), [(1, None, 8), (2, None, 4), (2, "1", 1), (2, "6", 4), (9, "0", 1)]
)
def test_a_run_has_its_part_of_the_cores_or_fewer(monkeypatch, jobs, given, threads):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads_of_a_run(jobs) == str(threads)
