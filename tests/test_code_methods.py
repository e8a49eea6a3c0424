"""What is done with a run of codes besides training works with each kind of them: asking, maps, saving, counting, and
codes that are made in the step."""

import json

import pytest
from method_helpers import records, tiny_method
from run_helpers import ROOT, call_tool

from asvr.data.images import open_image
from asvr.data.scenes import Scenes
from asvr.demo.maps import target_maps
from asvr.engine.run import run
from asvr.flops.count import Sample
from asvr.loading import load
from asvr.profiling.report import flops_report

NAMES = ("soft_codes", "multi_codebook", "shared_vocabulary")
DEPTH = dict(soft_codes=1, multi_codebook=4, shared_vocabulary=1)
FEW = {
    "optim.precision": "float32",
    "schedule.steps": 4,
    "stages.pretrain.schedule.steps": 2,
    "runtime.checkpoint_interval": 4,
}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module", params=NAMES)
def trained(request, quick, tmp_path_factory):
    """Name and work dir of a short run."""
    work_dir = tmp_path_factory.mktemp(request.param) / "run"
    run(tiny_method(request.param, FEW), work_dir)
    return request.param, work_dir


def test_a_run_is_asked_shown_and_saved(trained, tmp_path):
    name, work_dir = trained
    result = json.loads((work_dir / "results.json").read_text())["finetune"]
    assert len(result["codes"]["semantic"]) == DEPTH[name] and len(result["codes_by_place"]["semantic"]) == 4
    assert ("entropy_semantic" in result) == (name == "soft_codes")
    done = call_tool("tools/eval.py", work_dir, "--limit", 3, "--out", tmp_path / "asked")
    assert done.returncode == 0 and "semantic codes" in done.stdout, done.stderr
    own = load(work_dir, device="cpu")
    image = open_image(next(iter(Scenes(split="test", scenes=1, concepts=40).images()))[1])
    (shown,) = target_maps(own, image)
    assert shown.right_RCD.shape == (4, 4, DEPTH[name])
    assert ((shown.probability_RCD > 0) & (shown.probability_RCD <= 1)).all()
    other = load(own.save_pretrained(tmp_path / "model"), device="cpu")
    (again,) = target_maps(other, image)
    assert (again.probability_RCD == shown.probability_RCD).all()
    assert other.chat(image, "what is it?", max_new_tokens=4) == own.chat(image, "what is it?", max_new_tokens=4)


def test_codes_made_in_the_step_give_the_losses_of_cached_ones(trained, tmp_path):
    name, work_dir = trained
    entry = tiny_method(name).model.reconstruction[0].to_dict()
    (folder,) = (work_dir / "tokenizers").iterdir()
    entry["tokenizer"]["name"] = str(folder)
    del entry["fit"]
    changes = {"model.reconstruction": [entry], "data.cache": False, "evaluation": None}
    run(tiny_method(name, FEW | changes), tmp_path / "online")
    for stage in ("pretrain", "finetune"):
        lines = zip(records(work_dir, stage), records(tmp_path / "online", stage), strict=True)
        for cached, online in lines:  # an encoder that sees other batches rounds otherwise
            assert online["loss_semantic"] == pytest.approx(cached["loss_semantic"], rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_three_counts_of_flops_agree(name):
    rows = {row["part"]: row for row in flops_report(tiny_method(name), Sample(8))["forward"]}
    for part in ("LM head", "tokenizer semantic: code search", f"classifiers semantic (depth {DEPTH[name]})"):
        counts = {rows[part][count] for count in ("fvcore", "formula", "torch") if rows[part][count] is not None}
        assert len(counts) == 1, (part, rows[part])


def test_a_target_that_is_off_in_a_stage_learns_nothing_there(quick, tmp_path):
    """Its weight is 0 in the first stage; in the second one it grows from 0 in the first step."""
    run(tiny_method("several", FEW | {"evaluation": None}), tmp_path / "run")
    weights = [0.0, 0.0], [0.0, 0.3 * 2 / 3, 0.3, 0.3]
    for stage, own in zip(("pretrain", "finetune"), weights, strict=True):
        for line, weight in zip(records(tmp_path / "run", stage), own, strict=True):
            total = line["loss_text"] + 0.3 * line["loss_semantic"] + weight * line["loss_appearance"]
            assert line["loss"] == pytest.approx(total, rel=1e-5)
