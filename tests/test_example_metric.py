"""The example of one's own metrics: its config trains, and its numbers are where the docs say."""

import json
from pathlib import Path

import pytest
from run_helpers import ROOT, TINY, call_tool

from asvr.engine.run import run
from asvr.recipe.config import load_config
from examples.metric import WordF1, YesShare

CONFIG = "configs/examples/metric.py"
FEW = {key: value for key, value in TINY.items() if not key.startswith("stages.")} | {
    "schedule.steps": 4,
    "stages.train.validation.interval": 2,
    "stages.train.validation.dataset.max_images": 2,
}


@pytest.fixture(scope="module")
def work_dir(quick, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("metric") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        run(load_config(ROOT / CONFIG, FEW), folder)
    return folder


def answers(work_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (work_dir / "train" / "answers.jsonl").read_text().splitlines()]


def test_the_numbers_are_in_the_results_and_the_log(work_dir):
    result = json.loads((work_dir / "results.json").read_text())["train"]
    rows = answers(work_dir)
    f1, yes = WordF1(), YesShare()
    for row in rows:
        f1.update(row)
        yes.update(row)
    assert result["word_f1"] == f1.compute()["word_f1"]
    assert 0 < result["yes_no_questions"] == yes.compute()["yes_no_questions"] < len(rows)
    assert result["accuracy"] == sum(row["right"] for row in rows) / result["total"]  # as without them
    assert f"word_f1 {result['word_f1']:.4g}, yes_share" in (work_dir / "train.log").read_text()


def test_a_validation_says_them_and_chooses_the_best_by_one(work_dir):
    lines = [json.loads(line) for line in (work_dir / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4] and all("accuracy" in line for line in lines)
    best = max(lines, key=lambda line: line["word_f1"])  # the first of equal ones
    meta = json.loads((work_dir / "train" / "best" / "checkpoint.json").read_text())
    assert (meta["step"], meta["word_f1"]) == (best["step"], best["word_f1"])


def test_the_tool_counts_them_too(work_dir, tmp_path):
    options = [f"{key}={value}" for key, value in FEW.items()]
    asked = ["--work-dir", work_dir, "--limit", 5, "--out", tmp_path, "--cfg-options", *options]
    done = call_tool("tools/eval.py", CONFIG, *asked)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["total"] == 5 and result.keys() >= {"word_f1", "yes_share"}


def test_words_that_are_shared():
    metric = WordF1(name="f1")
    for answer, expected in (("A red House.", "a house"), ("no", "yes"), ("yes", "yes")):
        metric.update(dict(answer=answer, expected=expected))
    assert metric.compute() == {"f1": pytest.approx((0.8 + 0 + 1) / 3)}
