"""Probes of a tiny finished study: two arms, two seeds. What is measured is kept, and the report says it."""

import json
import shutil
from math import pi
from unittest.mock import patch

import numpy as np
import pytest
import torch
from study_helpers import run, write_files

from asvr.data.images import open_image
from asvr.data.scenes import Scenes
from asvr.loading import load
from asvr.registry import DATASETS
from asvr.studies import probe_runs, probes
from asvr.studies.probe_report import TITLES, compare_probes, write_probe_report
from asvr.studies.probe_runs import _states, probe, probe_study
from asvr.studies.probe_truth import IMAGE, PROBES, coverage
from asvr.studies.study_file import load_study

SHORT = """
_short = dict(
    model=dict(reconstruction=[]),
    schedule=dict(steps=1),
    stages=dict(_delete_=True, finetune=dict(init='scratch', train=['projector', 'llm'])),
    data=dict(train=dict(scenes=8)),
    evaluation=dict(dataset=dict(scenes=2, kinds=['what', 'word', 'count', 'kind'])))
arms = dict(none=_short, late=dict(_short, optim=dict(lr=0.01)))
"""
SCENES = 15  # 9 to fit, 3 to choose, 3 to test


@DATASETS.register_module()
class OwnScenes(Scenes):
    """Scenes of somebody's own, which may be drawn in another way."""


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """The classifiers need not be good here."""
    with patch.object(probes, "STEPS", 5):
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    pytest.importorskip("easy_vqa", reason="the extra 'mini' is not installed")
    folder = tmp_path_factory.mktemp("study")
    write_files(folder, SHORT)
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def probed(trained):
    done = run(trained, "--probes", "--scenes", str(SCENES))
    assert done.returncode == 0, done.stderr
    return trained, done


def study_of(folder):
    return load_study(folder / "study.py")


def files(folder) -> dict[str, dict]:
    found = sorted((folder / "out").glob("*/seed_?/probes/probes.json"))
    return {f"{file.parts[-4]}/{file.parts[-3]}": json.loads(file.read_text()) for file in found}


def test_every_run_is_probed_at_every_layer(probed):
    folder, _ = probed
    found = files(folder)
    assert list(found) == ["late/seed_0", "late/seed_1", "none/seed_0", "none/seed_1"]
    scenes = Scenes(split="test", scenes=SCENES, size=64, kinds=[]).scenes
    things = [i for i in (12, 13, 14) for _ in scenes[i].things]
    rows = dict(color=things, what=things, letter=[12, 12, 13, 13, 14, 14], count=[12, 13, 14], place=[12, 13, 14] * 4)
    for result in found.values():
        assert list(result["probes"]) == list(PROBES)
        for name, own in result["probes"].items():
            assert own["scenes"] == rows[name] and len(own["guess"]) == len(rows[name])
            assert [len(right) for right in own["right"]] == [len(rows[name])] * 2  # layers 0 and 1
            assert [len(layer) for layer in own["penalties"]] == [4 if name == "place" else 1] * 2
        attention = result["attention"]
        assert len(attention["image"]) == len(attention["asked"]) == 1
        assert len(attention["scenes"]) == 4 * 3 and len(attention["asked_scenes"]) == 2 * 3  # what and kind
        assert 0 < min(attention["image"][0]) and max(attention["image"][0]) < 1
        assert attention["asked"][0] == pytest.approx([pi * 0.23**2] * 6, rel=0.2)  # an untrained model looks evenly
    assert found["none/seed_0"]["attention"] != found["none/seed_1"]["attention"]


def test_the_report_says_what_was_compared(probed):
    folder, done = probed
    text, result = (folder / "out/probes.md").read_text(), json.loads((folder / "out/probes.json").read_text())
    assert text in done.stdout and "probes.md, probes.json, probes.png" in done.stdout
    assert (folder / "out/probes.png").is_file()
    lines = text.splitlines()
    assert "- Arms: `none` (baseline), `late`" in lines and "- Seeds: 0, 1" in lines
    assert "**Only 2 seeds.**" in text and "Left out" not in text
    assert f"- Scenes: {SCENES} with the held-out drawings. 3 of them test the probes" in text
    layers = [layer for own in result["arms"]["late"]["measures"].values() for layer in own]
    intervals = sum(layer["gain_low"] is not None for layer in layers)
    assert result["about"]["intervals"] == intervals and f"- Intervals of differences: {intervals}." in text
    assert [line for line in lines if line.startswith("## ")] == [f"## {name}" for name in TITLES]
    [late] = [own for own in result["arms"]["late"]["measures"]["count"] if own["layer"] == 1]
    by_seed = [np.mean(files(folder)[f"late/seed_{seed}"]["probes"]["count"]["right"][1]) for seed in (0, 1)]
    assert late["by_seed"] == pytest.approx(by_seed) and late["share"] == pytest.approx(np.mean(by_seed))
    assert "gain" not in result["arms"]["none"]["measures"]["count"][0]


def test_the_differences_are_paired_by_seed_and_row(probed):
    folder, _ = probed
    study = study_of(folder)
    found, _ = probe_study(study, folder / "out", scenes=SCENES)
    for own, value in ((found["late"], 1), (found["none"], 0)):
        for result in own:
            result["probes"]["color"]["right"] = [[value] * len(r) for r in result["probes"]["color"]["right"]]
    found["late"][0]["probes"]["color"]["right"][1] = [0] * len(found["late"][0]["probes"]["color"]["scenes"])
    first, second = compare_probes(study, found)["arms"]["late"]["measures"]["color"]
    assert (first["gain"], first["gain_low"]) == (1.0, None)  # no spread
    assert second["gain"] == 0.5 and second["gain_low"] < 0.5 < second["gain_high"]
    del found["late"][1]  # its seed 0 is compared with seed 0 of the baseline
    found["none"][1]["probes"]["color"]["right"][1] = [1] * len(found["none"][1]["probes"]["color"]["scenes"])
    assert compare_probes(study, found)["arms"]["late"]["measures"]["color"][1]["gain"] == 0.0


def test_a_measure_that_an_arm_lacks_is_told(probed, tmp_path):
    folder, _ = probed
    study = study_of(folder)
    found, _ = probe_study(study, folder / "out", scenes=SCENES)
    for own in found["late"]:
        own["attention"] = None
    text = write_probe_report(study, found, tmp_path, name="study", scenes=SCENES, missing=[])
    assert "- Left out for all arms: attention on the image. `late` cannot give it." in text
    assert "## attention" not in text and "## color" in text


def test_files_are_kept_until_weights_scenes_or_version_change(probed, tmp_path):
    folder, _ = probed
    out, study, made = folder / "out", study_of(folder), []

    def again(scenes=SCENES):
        made.clear()
        return probe_study(study, out, scenes=scenes)[0]

    def fake(pretrained, dataset, *, done):
        made.append(len(dataset.scenes))
        return dict(probes={}, attention=None)

    shutil.copytree(out, tmp_path / "out")
    out = tmp_path / "out"
    own = load(folder / "out/none/seed_0", device="cpu")  # loading one for every run takes seconds
    with patch.object(probe_runs, "probe", fake), patch.object(probe_runs, "load", lambda *_, **__: own):
        first = again()
        assert made == [] and first["late"][1]["probes"] == files(folder)["late/seed_1"]["probes"]
        digest = probe_runs.weights_digest
        with patch.object(
            probe_runs, "weights_digest", lambda f, s: "other" if "late/seed_1" in str(f) else digest(f, s)
        ):
            again()
            assert made == [SCENES] and files(tmp_path)["late/seed_1"]["made_with"]["weights"] == "other"
        again()
        assert made == [SCENES]  # its own weights again
        with patch.object(probe_runs, "VERSION", -1):
            again()
            assert made == [SCENES] * 4
        with patch.object(probe_runs, "painter", lambda: "other drawings"):
            again()
            assert made == [SCENES] * 4
        again(scenes=10)
        assert made == [10] * 4
        again(scenes=10)
        assert made == []


def test_a_probe_gives_the_same_twice(probed):
    folder, _ = probed
    own, dataset = load(folder / "out/late/seed_0", device="cpu"), probed_scenes()
    result = json.loads(json.dumps(probe(own, dataset, done=lambda steps: None)))
    kept = files(folder)["late/seed_0"]
    assert (result["probes"], result["attention"]) == (kept["probes"], kept["attention"])


def merged(first: dict, second: dict) -> dict:
    both = {k: merged(first[k], v) for k, v in second.items() if isinstance(v, dict) and isinstance(first.get(k), dict)}
    return first | second | both


def probed_scenes() -> Scenes:
    kinds = ["what", "word", "count", "kind"]
    return Scenes(split="test", scenes=SCENES, per_scene=None, size=64, kinds=kinds)


def test_states_are_those_of_the_visual_tokens_of_a_region(trained):
    own, dataset, steps = load(trained / "out/none/seed_0", device="cpu"), probed_scenes(), []
    covered_GN = coverage(own.model.encoder.grid)
    first, last = _states(own, dataset, covered_GN, steps.append)
    assert sum(steps) == SCENES
    image = open_image(dataset.image("3")[1])
    batch = own.batch([dict(images=[image], messages=[{"from": "human", "value": "<image>\nhow many?"}])])
    with torch.no_grad():
        visual_NH = own.model.projector(own.model.encode(batch.pixels["encoder"]))[0]
        embeds_BTH, _ = own.model.embed(batch)
        hidden_NH = own.model.hidden(batch, embeds_BTH, {1})[1][batch.visual_position_V]
    torch.testing.assert_close(first[3, IMAGE], visual_NH.mean(0))
    torch.testing.assert_close(last[3, IMAGE], hidden_NH.mean(0))  # the question behind the image changes nothing
    weights_N = torch.tensor(covered_GN[2] / covered_GN[2].sum(), dtype=torch.float32)
    torch.testing.assert_close(last[3, 2], (weights_N[:, None] * hidden_NH).sum(0))


def test_unfinished_runs_and_blind_arms_are_left_out(probed, tmp_path):
    folder, _ = probed
    shutil.copytree(folder / "out", tmp_path / "out")
    (tmp_path / "out/late/seed_1/finetune/done.json").unlink()
    study = study_of(folder)
    study.arms.blind = dict(evaluation=dict(dataset=dict(with_images=False)))
    found, missing = probe_study(study, tmp_path / "out", scenes=SCENES)
    assert {arm: [own["seed"] for own in runs] for arm, runs in found.items()} == dict(none=[0, 1], late=[0])
    assert missing == ["blind (asked without images)", "late, seed 1 (not finished)"]
    (tmp_path / "out/none/seed_0/finetune/done.json").unlink()
    found, missing = probe_study(study, tmp_path / "out", scenes=SCENES)
    assert list(found) == ["none"] and "late, seed 0 (the baseline lacks it)" in missing
    (tmp_path / "out/none/seed_1/finetune/done.json").unlink()
    with pytest.raises(ValueError, match="no run of the baseline 'none' is finished"):
        probe_study(study, tmp_path / "out", scenes=SCENES)


@pytest.mark.parametrize(
    ("arm", "change", "told"),
    [
        ("none", dict(evaluation=dict(dataset=dict(with_images=False))), "baseline 'none' is asked without images"),
        ("late", dict(evaluation=dict(dataset=dict(concepts=30))), "arm 'late' is asked about other scenes"),
        (
            "late",
            dict(evaluation=dict(dataset=dict(_delete_=True, type="EasyVQA"))),
            "arm 'late': its questions are of EasyVQA, whose images have no known content",
        ),
        ("late", dict(evaluation=dict(dataset=dict(type="OwnScenes"))), "arm 'late': its questions are of OwnScenes"),
        (
            "late",
            dict(model=dict(layout=dict(type="AnyRes", grids=[(1, 2)])), data=dict(max_length=500)),
            "arm 'late': its images are cut into crops",
        ),
    ],
)
def test_what_cannot_be_probed_is_told_before_a_model_is_loaded(trained, arm, change, told):
    study = study_of(trained)
    study.arms[arm] = merged(study.arms[arm].to_dict(), change)
    with (
        patch.object(probe_runs, "load", lambda *_, **__: pytest.fail("a model was loaded")),
        pytest.raises(ValueError, match=told) as error,
    ):
        probe_study(study, trained / "out", scenes=11)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--probes", "--scenes", "9"], "9 scenes are too few for probes"),
        (["--probes", "--jobs", "2"], "--jobs cannot be used with --probes"),
        (["--probes", "--report"], "--report cannot be used with --probes"),
        (["--scenes", "20"], "--scenes needs --probes"),
    ],
)
def test_options_that_do_not_fit_are_refused(trained, options, told):
    done = run(trained, *options)
    assert done.returncode == 1 and told in done.stderr.strip().splitlines()[-1]


def test_a_study_that_never_ran_has_no_probes(tmp_path):
    write_files(tmp_path)
    done = run(tmp_path, "--probes")
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert "there is no run of this study; run the same command without --probes" in done.stderr
