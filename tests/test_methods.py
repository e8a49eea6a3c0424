"""Every method of ``configs/targets/scenes`` trains at tiny size, its losses fall, and it resumes exactly."""

import shutil
from pathlib import Path

import pytest
import torch
from method_helpers import FINETUNE, METHODS, records, tiny_method
from run_helpers import ROOT
from safetensors.torch import load_file

from asvr.engine.run import run
from asvr.models.targets.weights import has_weight
from asvr.recipe.recipe import Recipe


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def trained(quick, tmp_path_factory):
    """The work dir of a method's run, made once."""
    made: dict[str, Path] = {}

    def train(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "run"
            run(tiny_method(name), made[name])
        return made[name]

    return train


def mean(lines: list[dict], key: str) -> float:
    return sum(line[key] for line in lines) / len(lines)


@pytest.mark.parametrize("name", METHODS)
def test_the_losses_of_a_method_fall(name, trained):
    recipe = Recipe(tiny_method(name))
    learned = set()
    for stage in ("pretrain", "finetune"):
        entries, lines = recipe.stages[stage].model.reconstruction, records(trained(name), stage)
        with_weight = [entry.name for entry in entries if has_weight(entry.get("weight", 1.0))]
        for target in (target for target in with_weight if f"loss_{target}" in lines[0]):
            # Labels that move have an entropy that moves: what is left of the loss without it must fall.
            key = f"kl_{target}" if f"kl_{target}" in lines[0] else f"loss_{target}"
            assert mean(lines[-4:], key) < mean(lines[:4], key), f"{key} in {stage}"
            learned.add(target)
    assert learned == {entry.name for entry in recipe.targets()}
    text = records(trained(name), "finetune")
    assert mean(text[-4:], "loss_text") < mean(text[:4], "loss_text")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_resumes_exactly(name, trained, quick, tmp_path):
    whole, cut = trained(name), tmp_path / "run"
    shutil.copytree(whole, cut)
    (cut / "finetune" / "done.json").unlink()
    for step in (FINETUNE, 20):
        shutil.rmtree(cut / "finetune" / "checkpoints" / f"step_{step:08d}")
    run(tiny_method(name), cut)
    last = f"finetune/checkpoints/step_{FINETUNE:08d}/model.safetensors"
    expected, found = load_file(whole / last), load_file(cut / last)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
