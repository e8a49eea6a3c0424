"""Training on several sources: their shares in the log, and the same weights after an interruption."""

import json
import shutil

import pytest
from run_helpers import ROOT, TINY, read_metrics

from asvr.data.mixture import WINDOW
from asvr.engine.run import run
from asvr.recipe.config import load_config

pytestmark = pytest.mark.usefixtures("quick")
OPTIONS = {
    key: value for key, value in TINY.items() if not key.startswith(("stages", "data.train", "evaluation", "schedule"))
}
STEPS = 12


def config(tmp_path):
    records = [
        dict(conversations=[{"from": "human", "value": f"{i}?"}, {"from": "gpt", "value": "a"}]) for i in range(5)
    ]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    sources = [
        dict(dataset=dict(type="EasyVQA", max_images=12), weight=3, name="pictures"),
        dict(dataset=dict(type="LlavaDataset", ann_file=str(tmp_path / "words.jsonl")), weight=1, name="words"),
    ]
    mixture = dict(_delete_=True, type="Mixture", sources=sources)
    questions = dict(_delete_=True, type="Mixture", sources=[dict(dataset=dict(type="EasyVQA", max_images=1))])
    (tmp_path / "mixture.py").write_text(
        f"_base_ = ['{ROOT}/configs/asvr_mini.py']\n"
        f"data = dict(train={mixture!r})\n"
        f"text_tokenizer = dict(corpus={mixture!r})\n"
        f"evaluation = dict(dataset={questions!r})\n"
        "stages = dict(_delete_=True, tune=dict(init='scratch', train=['projector', 'heads', 'llm']))\n"
        f"schedule = dict(steps={STEPS})\n"
    )
    options = {key: value for key, value in OPTIONS.items() if not key.startswith("text_tokenizer")}
    return load_config(tmp_path / "mixture.py", options | {"text_tokenizer.vocab_size": 300})


def test_shares_are_logged_and_an_interruption_changes_nothing(tmp_path):
    cfg = config(tmp_path)
    whole = tmp_path / "whole"
    results = run(cfg, whole)
    assert results["tune"]["total"] > 0
    batch = TINY["data.global_batch"]
    lines = read_metrics(whole)
    assert all(sum(line["samples"].values()) == line["step"] * batch for line in lines) and STEPS * batch % WINDOW == 0
    assert lines[-1]["samples"] == dict(pictures=STEPS * batch * 3 // 4, words=STEPS * batch // 4)
    resumed = shutil.copytree(whole, tmp_path / "resumed")
    (resumed / "tune" / "done.json").unlink()
    shutil.rmtree(resumed / "tune" / "checkpoints" / f"step_{STEPS:08d}")
    run(cfg, resumed)
    assert "goes on from step 7 of 12" in (resumed / "train.log").read_text()
    weights = f"tune/checkpoints/step_{STEPS:08d}/model.safetensors"
    assert (resumed / weights).read_bytes() == (whole / weights).read_bytes()
    for key in ("loss", "samples"):
        assert [line[key] for line in read_metrics(resumed)] == [line[key] for line in lines]
