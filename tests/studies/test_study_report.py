"""The report of a study says what the answers say, what is missing, and what cannot be known."""

import json
import re
from unittest.mock import patch

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from study_helpers import run, write_files, write_finished

import asvr
from asvr.studies.comparison import asked_groups, compare
from asvr.studies.plots import arm_colours, draw_curves, draw_groups, groups_file
from asvr.studies.report import heading
from asvr.studies.report_tables import markdown
from asvr.studies.results import collect
from asvr.studies.study_file import load_study


@pytest.fixture
def finished(tmp_path):
    write_finished(tmp_path)
    study = load_study(tmp_path / "study.py")
    return study, collect(study, tmp_path / "out"), tmp_path


@pytest.mark.parametrize("answers", ["all wrong", "all right", "the same"])
def test_without_spread_the_report_has_no_interval_and_says_why(finished, answers):
    study, found, _ = finished
    of_first = [i % 3 == 0 for i in range(len(found["none"][0]["answers"]))]
    right = {"all wrong": [False] * 999, "all right": [True] * 999, "the same": of_first}[answers]
    for own in [own for runs in found.values() for own in runs]:
        own["answers"] = [dict(a, right=r) for a, r in zip(own["answers"], right[: len(own["answers"])], strict=True)]
    result = compare(study, found)
    assert json.loads(json.dumps(result))["arms"]["late"]["groups"]["ocr"]["low"] is None
    assert [(own["seeds"], set(own["groups"].values())) for own in result["detectable"]] == [(2, {None})]
    lines = markdown(result).splitlines()
    assert "| late | +0.0 (-), p - | +0.0 (-), p - | +0.0 (-), p - |" in lines and "| 2 | - | - | - |" in lines
    [of_arms, of_pairs, of_size] = [line for line in lines if line.startswith("`-`: no spread, so ")]
    assert "cannot be estimated: late (all groups)." in of_arms and "Ask easier or harder questions" in of_arms
    assert "none minus late (all groups)" in of_pairs and "the seeds of the baseline agree in all groups." in of_size
    assert "+0.0 to +0.0" not in "".join(lines)
    for own in found["late"]:  # one answer differs, of a kind that is in one group
        own["answers"][0]["right"] = not own["answers"][0]["right"]
    text = markdown(compare(study, found))
    assert "cannot be estimated: late (ocr); " not in text and "cannot be estimated: late (ocr). " in text
    about = dict(study="a", date="", asvr="", config="", intervals=0, missing=[], starts=[])
    assert "- Intervals: 0.\n" in heading(about, result)


def test_pairs_that_decide_have_wider_intervals(finished):
    study, found, _ = finished
    assert compare(study, found)["decides"] == [] and "decide**" not in markdown(compare(study, found))
    study.arms.more, found["more"] = study.arms.late, found["late"]
    study.decides = [("late", "none"), ("more", "none")]
    result = compare(study, found)
    text = markdown(result)
    assert result["level"] == 0.975 and "97.5 % confidence interval" in text and "a pair has fewer than 6 seeds" in text
    decisive, other = result["decides"][0]["groups"]["all"], result["arms"]["late"]["groups"]["all"]
    assert decisive["gain"] == other["gain"] and decisive["low"] < other["low"] < other["high"] < decisive["high"]
    assert result["decides"][0]["detectable"] > result["detectable"][0]["groups"]["all"]
    del found["more"]
    found["late"] = found["late"][1:]
    text = markdown(compare(study, found))
    assert "**Runs are missing, so nothing is decided yet.**" in text and "is about 5 %" not in text
    assert "| late minus none | 1 of 2 | " in text and "| more minus none | 0 of 2 | not run | " in text
    assert "The interval covers other scenes. It does not cover other seeds, because there is only one." in text


def test_other_questions_decide_nothing(finished):
    study, found, _ = finished
    study.decides, study.compare = [("late", "none")], [("none", "late")]
    asked = asked_groups(study, found)
    assert asked.decides == [] and asked.compare == [("late", "none"), ("none", "late")]


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
def test_a_report_of_finished_runs_says_what_is_missing(finished, gone, missing, seeds):
    study, found, folder = finished
    whole = compare(study, found)
    unfinish(folder, *gone)
    done = run(folder, "--report")
    assert done.returncode == 0, done.stderr
    text = (folder / "out/report.md").read_text()
    result = json.loads((folder / "out/report.json").read_text())
    assert result["about"]["missing"] == missing and all(name in text for name in missing)
    assert ("This report is not complete" in text) == bool(missing)
    assert {arm: own["seeds"] for arm, own in result["arms"].items()} == seeds
    assert ("**Only one seed of late.**" in text) == (gone == ["late/seed_1"])
    late, complete = (r["arms"]["late"]["groups"]["all"] for r in (result, whole))
    assert late["by_seed"] == [complete["by_seed"][seed] for seed in seeds["late"]]
    base = whole["arms"]["none"]["groups"]["all"]["by_seed"]
    expected = np.mean([complete["by_seed"][seed] - base[seed] for seed in seeds["late"]])
    assert late["gain"] == pytest.approx(expected)
    assert f"| late | {seeds['late'][0]} | " in text if gone == ["late/seed_1"] else "| arm | seeds |" not in text


@pytest.mark.parametrize("gone", [["late/seed_0", "late/seed_1"], ["none/seed_0", "late/seed_1"]])
def test_the_baseline_may_be_alone(finished, gone):
    """It is run first, to see its power."""
    _, _, folder = finished
    unfinish(folder, *gone)
    assert run(folder, "--report").returncode == 0
    text = (folder / "out/report.md").read_text()
    assert "There is no other arm." in text and "This report is not complete" in text


def test_there_is_no_report_without_the_baseline(finished):
    _, _, folder = finished
    unfinish(folder, "none/seed_0", "none/seed_1")
    done = run(folder, "--report")
    assert done.returncode == 1 and not (folder / "out/report.md").exists()
    [line] = done.stderr.strip().splitlines()
    assert "no report: it needs a finished run of the baseline 'none'" in line
    assert "out/none/seed_0: this run is not finished" in line


def test_a_report_of_a_study_that_never_ran_makes_no_folder(tmp_path):
    write_files(tmp_path)
    done = run(tmp_path, "--report")
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    [line] = done.stderr.strip().splitlines()
    assert "out: there is no run of this study; run the same command without --report" in line


def test_the_report_begins_with_what_was_compared(finished):
    _, _, folder = finished
    assert run(folder, "--report").returncode == 0
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
        "- Questions: general 36, ocr 6, all 42. Scenes: 6.",
    ]
    compared = [result["arms"]["late"]["groups"], result["pairs"][0]["groups"]]
    intervals = sum(group["low"] is not None for groups in compared for group in groups.values())
    assert lines[8].startswith(f"- Intervals: {intervals}. If no arm had an effect, about 5 % of them")
    assert "So `all` is without them. The loss and the codes are measured on all questions" in lines[9]
    assert "**Only 2 seeds.**" in lines[10]


@pytest.mark.parametrize(("given", "runs"), [("out", 4), ("out/late", 2)])
def test_a_study_is_no_model_and_its_runs_are_named(finished, given, runs):
    *_, folder = finished
    for file in (folder / "out").glob("*/seed_*/results.json"):
        (file.parent / "config.py").write_text("")
    message = (
        f"{folder / given} is the folder of a study: give one of its {runs} runs, such as {folder}/out/late/seed_0"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        asvr.load(folder / given)


def test_a_folder_of_other_runs_is_no_study(tmp_path):
    (tmp_path / "one/seeds").mkdir(parents=True)
    (tmp_path / "one/seeds/config.py").write_text("")
    with pytest.raises(ValueError, match="neither a folder with asvr.json nor a run's work dir"):
        asvr.load(tmp_path)


@pytest.mark.parametrize(("seeds", "warning"), [(1, "Only one seed."), (2, "Only 2 seeds."), (3, None)])
def test_few_seeds_are_a_warning(finished, seeds, warning):
    study, found, _ = finished
    study.seeds = list(range(seeds))
    found = {arm: [dict(runs[0], seed=seed) for seed in study.seeds] for arm, runs in found.items()}
    about = dict(study="a", date="", asvr="", config="", intervals=6, missing=[], starts=[])
    text = heading(about, compare(study, found))
    assert (warning in text) if warning else ("**Only" not in text)


def test_numbers_of_targets_are_in_the_report(finished):
    study, found, _ = finished
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
    study, _, folder = finished
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
