"""Stages that have other targets than the stage that they start from."""

import pytest
import torch
from method_helpers import records, tiny_method
from run_helpers import ROOT
from safetensors.torch import load_file

from asvr.engine.run import run
from asvr.loading import load

STEPS = dict(pretrain=3, finetune=4)
FEW = {
    "schedule.steps": STEPS["finetune"],
    "stages.pretrain.schedule.steps": STEPS["pretrain"],
    "runtime.checkpoint_interval": 2,
    "data.train.scenes": 12,
    "text_tokenizer.corpus.scenes": 12,
    "evaluation.dataset.scenes": 2,
}


@pytest.fixture(autouse=True)
def here(monkeypatch, quick):
    monkeypatch.chdir(ROOT)


def weights(work_dir, stage: str, step: int | None = None) -> dict[str, torch.Tensor]:
    step = step or STEPS[stage]
    return load_file(work_dir / stage / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


def targets_in(tensors: dict) -> set[str]:
    return {key.split(".")[1] for key in tensors if key.startswith("heads.")}


def config(pretrain: list[str], finetune: list[str]):
    """ASVR's recipe with its target under these names, by stage."""
    cfg = tiny_method("asvr", FEW)
    (entry,) = (own.to_dict() for own in cfg.model.reconstruction)
    cfg.model.reconstruction = []
    for stage, names in dict(pretrain=pretrain, finetune=finetune).items():
        cfg.stages[stage].model = dict(reconstruction=[dict(entry, name=name) for name in names])
    return cfg


@pytest.mark.parametrize(
    ("pretrain", "finetune"),
    [([], ["one"]), (["one"], []), (["one"], ["two"]), (["one", "two"], ["two", "three"])],
    ids=["new", "gone", "another", "some"],
)
def test_targets_come_and_go(pretrain, finetune, tmp_path):
    run(config(pretrain, finetune), tmp_path)
    first, last = weights(tmp_path, "pretrain"), weights(tmp_path, "finetune")
    assert (targets_in(first), targets_in(last)) == (set(pretrain), set(finetune))
    for stage, names in dict(pretrain=pretrain, finetune=finetune).items():
        losses = {key for key in records(tmp_path, stage)[0] if key.startswith("loss_")}
        assert losses == {"loss_text", *(f"loss_{name}" for name in names)}
    assert [target.name for target in load(tmp_path, device="cpu").model.targets] == finetune


def test_what_both_stages_have_is_trained_on(tmp_path):
    cfg = config(["one", "two"], ["two", "three"])
    cfg.optim.lr = 1e-12  # nothing moves
    run(cfg, tmp_path)
    first, last = weights(tmp_path, "pretrain"), weights(tmp_path, "finetune")
    kept = [key for key in first if not key.startswith("heads.one.")]
    assert kept and all(torch.allclose(first[key], last[key], atol=1e-9) for key in kept)


def test_a_stage_with_new_targets_resumes_exactly(tmp_path):
    cfg = config([], ["one"])
    run(cfg, tmp_path)
    whole = weights(tmp_path, "finetune")
    (tmp_path / "finetune" / "done.json").unlink()
    for step in (4, 3):
        for folder in (tmp_path / "finetune" / "checkpoints").glob(f"step_{step:08d}"):
            folder.rename(tmp_path / f"gone_{step}")
    run(cfg, tmp_path)
    again = weights(tmp_path, "finetune")
    assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)


def test_a_new_target_that_the_stage_does_not_train_is_told(tmp_path):
    cfg = config([], ["one"])
    cfg.stages.finetune.train = ["projector", "llm"]
    with pytest.raises(ValueError, match=r"has no head of target 'one', and the stage does not train it: add 'heads'"):
        run(cfg, tmp_path)


def test_a_teacher_begins_as_the_llm_that_the_stage_before_trained(tmp_path):
    cfg = tiny_method("laver", FEW | {"optim.lr": 2e-3})
    cfg.stages.finetune.optim = dict(lr=1e-12)  # the LLM does not move, nor does its average
    run(cfg, tmp_path)
    trained, last = weights(tmp_path, "pretrain"), weights(tmp_path, "finetune")
    prefix = "teachers.latents.llm."
    teacher = {key.removeprefix(prefix): value for key, value in last.items() if key.startswith(prefix)}
    assert teacher and all(torch.allclose(value, trained[f"llm.{key}"], atol=1e-8) for key, value in teacher.items())
