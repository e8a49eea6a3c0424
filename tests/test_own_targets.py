"""The targets of examples/: whatever a target of one's own gives as truth, it trains, resumes, is cached, counted,
evaluated and shown as codes are."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from parallel_helpers import launch
from run_helpers import ROOT
from safetensors.torch import load_file

from asvr.demo.maps import target_maps
from asvr.engine.run import run
from asvr.loading import load
from asvr.profiling.dry_run import dry_run
from asvr.recipe.config import load_config

STEPS = 4
FEW = {
    "text_tokenizer.corpus.max_images": 8,
    "data.train.max_images": 12,
    "schedule.steps": STEPS,
    "runtime.log_interval": 1,
    "runtime.checkpoint_interval": 2,
    "runtime.keep_checkpoints": 3,
    "data.micro_batch": 4,
    "data.global_batch": 8,
}
SMALL = {"ema_target": {"model.encoder": dict(_delete_=True, type="ColorPatches", image_size=64, patch=8)}}
NAMES = ("feature_target", "denoising_target", "ema_target", "pooled_codes")
CACHED = ("feature_target", "denoising_target", "pooled_codes")


def config(name: str, changes: dict | None = None):
    return load_config(ROOT / f"configs/examples/{name}.py", FEW | (changes or {}))


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def trained(quick, tmp_path_factory):
    """The work dir of an example's run, made once."""
    made: dict[str, Path] = {}

    def train(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "run"
            run(config(name), made[name])
        return made[name]

    return train


def lines(work_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]


def weights(work_dir: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(work_dir / "train" / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_trains(name, trained):
    assert len((ROOT / f"examples/{name}.py").read_text().splitlines()) <= 60
    found = lines(trained(name))
    target = config(name).model.reconstruction[0].name
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    assert all(line[f"loss_{target}"] > 0 for line in found)
    first, last = (weights(trained(name), step) for step in (2, 4))
    heads = [key for key in first if key.startswith(f"heads.{target}.")]
    assert heads and any(not torch.equal(first[key], last[key]) for key in heads)
    if name == "feature_target":
        assert all(-1 <= line["cosine_features"] <= 1 for line in found)
        cosine, loss = found[0]["cosine_features"], found[0]["loss_features"]
        assert loss == pytest.approx(1 - cosine, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(name, trained, tmp_path):
    copy = shutil.copytree(trained(name), tmp_path / "run")
    (copy / "train" / "done.json").unlink()
    shutil.rmtree(copy / "train" / "checkpoints" / f"step_{STEPS:08d}")
    run(config(name), copy)
    whole, resumed = weights(trained(name)), weights(copy)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
    kept = ("step", "loss", "grad_norm")
    assert [[line[k] for k in kept] for line in lines(copy)] == [
        [line[k] for k in kept] for line in lines(trained(name))
    ]


@pytest.mark.parametrize("name", CACHED)
def test_cached_and_online_truths_give_one_loss(name, trained, tmp_path):
    options = {"data.cache": False}
    if name == "pooled_codes":  # what is fitted needs the cache: the fitted one is named
        (folder,) = (trained(name) / "tokenizers").iterdir()
        own = dict(type="SemanticTokenizer", depth=2, codebook_size=64, name=str(folder))
        entry = {k: v for k, v in config(name).model.reconstruction[0].to_dict().items() if k != "fit"}
        options["model.reconstruction"] = [dict(entry, tokenizer=own)]
    run(config(name, options), tmp_path / "online")
    assert [line["loss"] for line in lines(tmp_path / "online")] == [line["loss"] for line in lines(trained(name))]


def test_only_what_says_so_is_cached(trained):
    def files(name: str) -> set[str]:
        return {file.name.split(".")[0] for file in (trained(name) / "cache").glob("*/*.npy")}

    assert files("denoising_target") == {"features", "latents"}
    assert files("pooled_codes") == {"features", "codes"}
    assert files("feature_target") == {"features"}


def test_a_teacher_that_follows_is_kept_and_moves(trained):
    early, late = (weights(trained("ema_target"), step) for step in (2, 4))
    keys = [key for key in early if key.startswith("teachers.features.")]
    assert keys and any(not torch.equal(early[key], late[key]) for key in keys)
    student = {key: late[key.replace("teachers.features.", "encoder.")] for key in keys}
    assert any(not torch.equal(late[key], student[key]) for key in keys)
    model = load(trained("ema_target"), device="cpu").model
    own = model.teachers.state_dict()
    assert all(torch.equal(own[key.removeprefix("teachers.")], late[key]) for key in keys)
    assert not any(p.requires_grad for p in model.teachers.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_has_its_target(name, trained, tmp_path):
    own = load(trained(name), device="cpu")
    again = load(own.save_pretrained(tmp_path / "model"), device="cpu", trust_custom_imports=True)
    first, second = own.model.state_dict(), again.model.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    from PIL import Image

    maps = target_maps(again, Image.new("RGB", (64, 64), (200, 30, 30)))
    if name == "feature_target":
        assert [m.name for m in maps] == ["features"] and maps[0].values_RC["cosine"].shape == (8, 8)
    assert bool(maps) == (name in ("feature_target", "pooled_codes"))


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_counts_and_plans(name):
    text = dry_run(config(name))
    target = config(name).model.reconstruction[0].name
    assert "not counted" not in text and "not planned" not in text and f"head {target}" in text
    if name != "pooled_codes":
        row = next(line for line in text.splitlines() if f"truth {target}" in line)
        assert (" 0 " in row) == (name != "ema_target")  # a second encoder runs for the teacher


def test_evaluation_and_logs_name_its_loss(trained, tmp_path):
    ask = dict(dataset=dict(type="EasyVQA", split="test", max_images=4), num_examples=1)
    results = run(config("feature_target", {"evaluation": ask}), tmp_path / "run")
    loss, cosine = results["train"]["losses"]["features"], results["train"]["cosine_features"]
    assert 0.7 < loss < 1.3 and loss == pytest.approx(1 - cosine, abs=1e-6)


def test_two_processes_give_one_process_losses(trained, tmp_path):
    """A teacher that follows a trained encoder, with weights whole and sharded, and a head on a middle layer."""
    cases = {"ema_target": ("DDP", "FSDP2"), "feature_target": ("FSDP2",)}
    runs = [
        dict(
            config=str(ROOT / f"configs/examples/{name}.py"),
            work_dir=str(tmp_path / name / kind),
            options=FEW | {"parallel": dict(type=kind)},
        )
        for name, kinds in cases.items()
        for kind in kinds
    ]
    launch(tmp_path, runs, 2)
    for name, kinds in cases.items():
        alone = [line["loss"] for line in lines(trained(name))]
        for kind in kinds:
            assert [line["loss"] for line in lines(tmp_path / name / kind)] == pytest.approx(alone, abs=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_target_learns_from_tiles(name, trained, tmp_path):
    """Images of 64 x 64 pixels become an overview and two tiles, of which a half is padding that has no token."""
    tiles = {"model.layout": dict(type="AnyRes", grids=[(1, 2)]), "data.max_length": 600}
    tiles |= {"model.llm.arch.max_position_embeddings": 1024, "schedule.steps": 2}
    run(config(name, SMALL.get(name, {}) | tiles), tmp_path / "run")
    entry = config(name).model.reconstruction[0]
    found = lines(tmp_path / "run")
    assert [line["step"] for line in found] == [1, 2] and all(line[f"loss_{entry.name}"] > 0 for line in found)
    if name in CACHED:
        changes = {"data.cache": False}
        if name == "pooled_codes":
            (folder,) = (tmp_path / "run" / "tokenizers").iterdir()
            own = dict(type="SemanticTokenizer", depth=2, codebook_size=64, name=str(folder))
            changes["model.reconstruction"] = [
                dict({k: v for k, v in entry.to_dict().items() if k != "fit"}, tokenizer=own)
            ]
        run(config(name, tiles | changes), tmp_path / "online")
        assert [line["loss"] for line in lines(tmp_path / "online")] == [line["loss"] for line in found]
    assert "not counted" not in (text := dry_run(config(name, tiles))) and "not planned" not in text
