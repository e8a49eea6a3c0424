"""Questions asked while a stage trains: they change nothing, and the best weights are kept."""

import json
import shutil

import pytest
import torch
from run_helpers import ROOT, TINY, read_metrics
from safetensors.torch import load_file

from asvr.engine.hooks import ValidationHook
from asvr.engine.run import run
from asvr.recipe.config import load_config

OPTIONS = TINY | {
    "schedule.steps": 30,
    "stages.blind.schedule.steps": 2,
    "stages.pretrain.schedule.steps": 2,
    "stages.finetune.validation.dataset": dict(type="EasyVQA", split="test", max_images=3),
    "stages.finetune.validation.interval": 8,
    "stages.finetune.validation.limit": 12,
    "evaluation.limit": 2,
}
pytestmark = pytest.mark.usefixtures("quick")
STEPS = [8, 16, 24, 30]


def train(work_dir, **options):
    run(load_config(ROOT / "configs/asvr_mini.py", OPTIONS | options), work_dir)
    return work_dir


def validations(work_dir) -> list[dict]:
    return [json.loads(line) for line in (work_dir / "validation.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    return train(tmp_path_factory.mktemp("validated") / "run")


def test_what_a_validation_says(validated):
    lines = validations(validated)
    assert [line["step"] for line in lines] == STEPS
    for line in lines:
        assert line["stage"] == "finetune" and line["steps"] == 30 and line["total"] == 12
        assert sum(kind["total"] for kind in line["by_kind"].values()) == 12
        assert line["losses"].keys() == {"text", "semantic"} and all(value > 0 for value in line["losses"].values())
        assert len(line["codes"]["semantic"]) == 2
        places = torch.tensor(line["codes_by_place"]["semantic"])
        assert places.shape == (2, 2) and 0 <= places.min() and places.max() <= 1
        assert places.mean().item() == pytest.approx(sum(line["codes"]["semantic"]) / 2, abs=1e-5)
    assert len({line["losses"]["text"] for line in lines}) == len(lines)  # of the weights of that step
    assert "finetune 8/30, validation: " in (validated / "train.log").read_text()


def test_training_is_the_same_without(validated, tmp_path):
    without = train(tmp_path / "run", **{"stages.finetune.validation": None})
    keys = ("stage", "step", "loss", "loss_text", "grad_norm")
    own, other = (
        [{key: line[key] for key in keys if key in line} for line in read_metrics(folder)]
        for folder in (validated, without)
    )
    assert own == other
    assert not (without / "validation.jsonl").exists()


def test_the_best_weights_are_kept(validated):
    lines = validations(validated)
    best = max(lines, key=lambda line: line["accuracy"])  # the first of equal ones
    meta = json.loads((validated / "finetune/best/checkpoint.json").read_text())
    assert (meta["step"], meta["accuracy"]) == (best["step"], best["accuracy"])
    saved = load_file(validated / "finetune/best/model.safetensors")
    at_the_end = load_file(validated / "finetune/checkpoints/step_00000030/model.safetensors")
    same = all(torch.equal(saved[key], at_the_end[key]) for key in at_the_end)
    assert saved.keys() == at_the_end.keys() and same == (best["step"] == 30)


def test_a_resumed_run_validates_as_if_it_had_not_stopped(validated, tmp_path):
    work_dir = tmp_path / "run"
    shutil.copytree(validated, work_dir)
    for step in (28, 30):  # as if it had been killed behind step 21
        shutil.rmtree(work_dir / f"finetune/checkpoints/step_{step:08d}")
    (work_dir / "finetune/done.json").unlink()
    train(work_dir)
    assert read(validations(work_dir)) == read(validations(validated))
    assert read_best(work_dir) == read_best(validated)


def read(lines: list[dict]) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def read_best(work_dir) -> str:
    return json.loads((work_dir / "finetune/best/checkpoint.json").read_text())["sha256"]["model.safetensors"]


def test_values_of_two_metrics_are_not_compared():
    def hook(by: str) -> ValidationHook:
        return ValidationHook(validate=None, file="a", folder="b", stage="tune", interval=1, meta={}, by=by)

    for by, expected in (("accuracy", 0.5), ("word_f1", None)):
        own = hook(by)
        own.load_state_dict(dict(best=0.5, pending=False))  # of a checkpoint that does not name a metric
        assert own.best == expected
        again = hook("word_f1")
        again.load_state_dict(own.state_dict())
        assert again.best is None
