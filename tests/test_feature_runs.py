"""Runs with targets of continuous features: what is cached, kept, shared by processes, and saved."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from parallel_helpers import STEPS, launch, make_config
from PIL import Image
from safetensors.torch import load_file

from asvr.demo.maps import target_maps
from asvr.engine.run import run
from asvr.loading import load
from asvr.recipe.config import load_config


def targets(tower: str) -> list[dict]:
    """VIRAL with another layer of the encoder's tower in other sizes, MetaMorph, VDEP and GAS at once."""
    own = dict(type="FeatureTarget", mlp=dict(layers=2, width=8))
    teacher = dict(type="HFVisionEncoder", name=tower, layer=1)
    pair = dict(type="MultiEncoder", encoders=[teacher, dict(teacher, layer=2)])
    return [
        dict(own, name="viral", teacher=pair, tap=[1, -1], weight=0.5, shift=0),
        dict(own, name="metamorph", loss=dict(type="L1Loss"), shift=1),
        dict(name="vdep", type="EmbeddingTarget", loss=dict(type="MSELoss"), shift=1, supervise=dict(every=2)),
        dict(name="gas", type="EmbeddingTarget", decay=0.9, tap=1, mlp=dict(layers=2), weight=dict(begin=0.1, end=1.0)),
    ]


NAMES = ("viral", "metamorph", "vdep", "gas")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[Path, dict]:
    """A config with data and weights, and what makes of it a run of all targets."""
    folder = tmp_path_factory.mktemp("features")
    file = make_config(folder)
    return file, {"model.reconstruction": targets(str(folder / "tower"))}


@pytest.fixture(scope="module")
def trained(quick, base, tmp_path_factory) -> Path:
    work_dir = tmp_path_factory.mktemp("trained") / "run"
    run(load_config(*base), work_dir)
    return work_dir


def lines(work_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]


def weights(work_dir: Path, stage: str, step: int) -> dict[str, torch.Tensor]:
    return load_file(work_dir / stage / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


def losses(work_dir: Path) -> list[float]:
    """Of all targets, in the steps that have an image."""
    found = [line for line in lines(work_dir) if "loss_viral" in line]
    return [line[f"loss_{name}"] for line in found for name in NAMES]


def test_only_the_teachers_features_are_cached(trained):
    files = {file.name.split(".")[0] + file.name.split(".")[1] for file in (trained / "cache").glob("*/*.npy")}
    assert files == {"featuresnpy", "featuresviral"}
    seen = [line for line in lines(trained) if "cosine_viral" in line]
    assert seen and all(-1 <= line[f"cosine_{name}"] <= 1 for line in seen for name in NAMES)


def test_cached_and_online_features_give_one_loss(trained, base, tmp_path):
    file, options = base
    run(load_config(file, options | {"data.cache": False}), tmp_path / "online")
    found = losses(tmp_path / "online")
    assert found == pytest.approx(losses(trained), abs=1e-6)  # a tower rounds by the number of images that it gets
    assert len(found) >= 4 * STEPS


def test_a_resumed_run_has_the_same_projector_average(trained, base, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "run")
    (copy / "finetune" / "done.json").unlink()
    shutil.rmtree(copy / "finetune" / "checkpoints" / f"step_{STEPS:08d}")
    run(load_config(*base), copy)
    whole, resumed = (weights(folder, "finetune", STEPS) for folder in (trained, copy))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
    kept = [key for key in whole if key.startswith("teachers.gas.")]
    before = weights(trained, "finetune", 2)
    assert kept and not any(torch.equal(whole[key], before[key]) for key in kept)
    assert not any(torch.equal(whole[key], whole[key.replace("teachers.gas", "projector")]) for key in kept)
    assert not any(key.startswith(("tokenizer", "teachers.viral", "heads.vdep")) for key in whole)


def test_a_saved_model_has_all_targets_and_shows_them(trained, tmp_path):
    own = load(trained, device="cpu")
    again = load(own.save_pretrained(tmp_path / "model"), device="cpu")
    first, second = own.model.state_dict(), again.model.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert any(key.startswith("tokenizers.viral.") for key in first)
    maps = target_maps(again, Image.new("RGB", (9, 9), (200, 30, 30)))
    assert [one.name for one in maps] == list(NAMES)
    assert all(one.values_RC["cosine"].shape == (2, 2) for one in maps)


def test_a_method_begins_in_a_later_stage(quick, base, tmp_path):
    """Its weight is 0 before; a moving average follows its projector all the same."""
    file, options = base
    off = {f"stages.pretrain.model.reconstruction.{i}.weight": 0.0 for i in (0, 3)}
    run(load_config(file, options | off), tmp_path / "run")
    for line in lines(tmp_path / "run"):
        assert ("loss_viral" in line) == ("loss_metamorph" in line and line["stage"] == "finetune")
        assert ("loss_gas" in line) == ("loss_viral" in line)
    first, last = weights(tmp_path / "run", "pretrain", 2), weights(tmp_path / "run", "finetune", STEPS)
    moved = {key for key in first if not torch.equal(first[key], last[key])}
    assert any(key.startswith("heads.viral") for key in moved)
    begun, own = "teachers.gas.mlp.0.weight", "projector.mlp.0.weight"
    assert not torch.equal(first[begun], first[own]) and begun in moved


def test_a_run_begins_with_a_model_without_the_targets(trained, base, tmp_path):
    """Its projector is where the average begins."""
    file, _ = base
    run(load_config(file, {"model.reconstruction": [], "data.on_error": "skip"}), tmp_path / "plain")
    plain = load(tmp_path / "plain", device="cpu")
    folder = plain.save_pretrained(tmp_path / "model")
    options = base[1] | {"stages.pretrain.init": str(folder), "optim.lr": 1e-30}
    run(load_config(file, options), tmp_path / "run", only="pretrain")
    found = weights(tmp_path / "run", "pretrain", 2)
    own = plain.model.projector.state_dict()
    assert all(torch.equal(found[f"teachers.gas.{key}"], value) for key, value in own.items())


def test_two_processes_give_one_process_losses(trained, base, tmp_path):
    """With sharded weights; in some steps one process has no image."""
    file, options = base
    own = dict(config=str(file), work_dir=str(tmp_path / "run"), options=options | {"parallel": dict(type="FSDP2")})
    launch(tmp_path, [own], 2)
    assert losses(tmp_path / "run") == pytest.approx(losses(trained), abs=2e-5)
