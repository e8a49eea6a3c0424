"""A target whose loss weighs more and more in the course of a stage."""

import json
import shutil

import pytest
import torch
from parallel_helpers import make_config, train
from safetensors.torch import load_file
from vlm_helpers import SEMANTIC, build

RAMP = {"model.reconstruction.0.weight": dict(_delete_=True, begin=0.0, end=1.0, until=0.5)}


@pytest.fixture(scope="module")
def done(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ramp")
    config = make_config(folder)
    train(config, folder / "run", RAMP)
    return config, folder / "run"


def lines(work_dir) -> list[dict]:
    return [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]


def test_the_objective_of_each_step_has_its_own_weight(done):
    """Over the first half of a stage: of two steps of pretraining, and of four of finetuning."""
    own = [(line["stage"], line["loss"] - line["loss_text"], line.get("loss_semantic", 0)) for line in lines(done[1])]
    wanted = [("pretrain", 0.0), ("pretrain", 1.0), *(("finetune", weight) for weight in (0.0, 2 / 3, 1.0, 1.0))]
    assert [stage for stage, *_ in own] == [stage for stage, _ in wanted]
    for (_, visual, loss), (_, weight) in zip(own, wanted, strict=True):
        assert visual == pytest.approx(weight * loss, abs=1e-6)


def test_a_resumed_run_goes_on_with_its_weight(done, tmp_path):
    config, whole = done
    copy, last = shutil.copytree(whole, tmp_path / "run"), "finetune/checkpoints/step_00000004"
    (copy / "finetune" / "done.json").unlink()
    shutil.rmtree(copy / last)
    train(config, copy, RAMP)
    own, other = (load_file(folder / last / "model.safetensors") for folder in (whole, copy))
    assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)


@pytest.mark.parametrize(
    "weight",
    [
        -1,
        "1",
        True,
        dict(begin=0),
        dict(begin=0, end=1, til=1),
        dict(begin=0, end=float("inf")),
        dict(begin=0, end="1"),
        dict(begin=0, end=1, until=0),
    ],
)
def test_weights_that_are_none_are_told(weight):
    with pytest.raises(ValueError, match=r"reconstruction\[0\]\.weight=.*expected a number of at least 0, or dict"):
        build(reconstruction=[dict(SEMANTIC, weight=weight)])


def test_a_target_that_begins_at_nothing_still_learns():
    model = build(reconstruction=[dict(SEMANTIC, weight=dict(begin=0.0, end=1.0)), dict(SEMANTIC, name="b", weight=0)])
    assert [target.counts for target in model.targets] == [True, False]
    model.set_progress(0.25)
    assert model.weights() == dict(text=1.0, semantic=0.25, b=0)
