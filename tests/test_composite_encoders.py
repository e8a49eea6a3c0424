"""Encoders that are made of others, from a config to an answer: a run trains and resumes, is cached, packed, saved,
counted and shown as one with a single encoder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from encoder_helpers import DINO, OTHER, PIXEL, SIGLIP, TOWER, save_tower, save_vqgan
from parallel_helpers import launch
from PIL import Image
from run_helpers import ROOT
from safetensors.torch import load_file

from asvr.data.easy_vqa import EasyVQA
from asvr.demo.maps import as_seen, target_maps
from asvr.engine.run import run
from asvr.flops.count import Sample, forward_parts, recomputed_parts
from asvr.interchange.export import export_llava
from asvr.loading import load
from asvr.models.tokenizers import SemanticTokenizer
from asvr.models.tokenizers.vqgan import PerceptualLoss
from asvr.profiling.dry_run import dry_run
from asvr.recipe.config import load_config
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe
from asvr.tokenizer_training.training import fit_semantic_tokenizer

STEPS = 4
FEW = {
    "text_tokenizer.corpus.max_images": 8,
    "data.train.max_images": 12,
    "model.llm.arch.hidden_size": 32,
    "model.llm.arch.intermediate_size": 48,
    "model.llm.arch.num_hidden_layers": 1,
    "schedule.steps": STEPS,
    "runtime.log_interval": 1,
    "runtime.checkpoint_interval": 2,
    "runtime.keep_checkpoints": 3,
    "data.micro_batch": 4,
    "data.global_batch": 8,
}
COLOURS = dict(type="ColorPatches", image_size=64, patch=8)
CACHED = ("channel", "sequence", "s2", "codes", "added")
NAMES = (*CACHED, "trained")
GRIDS = dict(sequence=[(2, 2), (8, 8)])


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, dict]:
    """Configs, whose parts are files, a class of examples/ without weights, and weights that are made here."""
    folder = tmp_path_factory.mktemp("files")
    tower = dict(TOWER, name=save_tower(folder / "tower", SIGLIP))
    other = dict(OTHER, name=save_tower(folder / "other", DINO, seed=1))
    codes = dict(type="CodeEncoder", tokenizer=dict(PIXEL, name=save_vqgan(folder / "vqgan")))
    learned = dict(codes, width=8)
    return dict(
        channel=dict(type="MultiEncoder", encoders=[tower, other, COLOURS], resample="bilinear"),
        sequence=dict(type="MultiEncoder", encoders=[tower, COLOURS], join="sequence"),
        s2=dict(type="S2", encoder=tower, scales=[1, 2]),
        codes=codes,
        added=dict(type="MultiEncoder", encoders=[tower, learned], join="add"),
        trained=dict(type="MultiEncoder", encoders=[tower, learned], join="sequence"),
    )


def config_options(encoder: dict, name: str) -> dict:
    options = FEW | {"model.encoder": dict(_delete_=True, **encoder)}
    if name == "trained":  # one part of two
        options |= {"data.cache": False, "stages.train.train": ["encoder.encoders.1", "projector", "heads", "llm"]}
        options |= {"model.reconstruction": []}
    return options


def config(encoder: dict, name: str, changes: dict | None = None):
    options = config_options(encoder, name) | (changes or {})
    return load_config(ROOT / "configs/examples/custom_components.py", options)


@pytest.fixture(scope="module")
def trained(quick, encoders, tmp_path_factory):
    """The work dir of a run with an encoder, made once."""
    made: dict[str, Path] = {}

    def train(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "run"
            run(config(encoders[name], name), made[name])
        return made[name]

    return train


def lines(work_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]


def losses(work_dir: Path) -> list[float]:
    return [line["loss"] for line in lines(work_dir)]


def weights(work_dir: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(work_dir / "train" / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


def with_fitted(encoders: dict, name: str, work_dir: Path) -> dict:
    """Options that name the tokenizer which a run has fitted: without a cache nothing can be fitted."""
    (folder,) = (work_dir / "tokenizers").iterdir()
    entry = config(encoders[name], name).model.reconstruction[0].to_dict()
    del entry["fit"]
    return {"model.reconstruction": [dict(entry, tokenizer=dict(entry["tokenizer"], name=str(folder)))]}


@pytest.mark.parametrize("name", CACHED)
def test_cached_packed_and_online_runs_have_the_same_losses(name, trained, encoders, tmp_path):
    whole = trained(name)
    assert [line["step"] for line in lines(whole)] == [1, 2, 3, 4] and lines(whole)[0]["loss_semantic"] > 0
    online = with_fitted(encoders, name, whole) | {"data.cache": False}
    run(config(encoders[name], name, online), tmp_path / "online")
    assert losses(tmp_path / "online") == losses(whole)
    run(config(encoders[name], name, {"data.pack": True, "data.cache_dir": str(whole / "cache")}), tmp_path / "packed")
    assert losses(tmp_path / "packed") == pytest.approx(losses(whole), abs=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(name, trained, encoders, tmp_path):
    copy = shutil.copytree(trained(name), tmp_path / "run")
    (copy / "train" / "done.json").unlink()
    shutil.rmtree(copy / "train" / "checkpoints" / f"step_{STEPS:08d}")
    run(config(encoders[name], name), copy)
    whole, resumed = weights(trained(name)), weights(copy)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert losses(copy) == losses(trained(name))


def test_checkpoints_hold_what_no_file_holds(trained):
    def held(name: str) -> set[str]:
        return {key for key in weights(trained(name)) if key.startswith("encoder.")}

    assert held("channel") == held("s2") == held("codes") == set()
    table, buffer = "encoder.encoders.1.tables.0.weight", "encoder.encoders.1.tokenizer.trained"
    assert held("added") == {table} and held("trained") == {table, buffer}
    early, late = (weights(trained("trained"), step)["encoder.encoders.1.tables.0.weight"] for step in (2, 4))
    assert not torch.equal(early, late)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_answers_and_shows_the_same(name, trained, tmp_path):
    own = load(trained(name), device="cpu")
    again = load(own.save_pretrained(tmp_path / "model"), device="cpu", trust_custom_imports=True)
    first, second = own.model.state_dict(), again.model.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert str(trained(name).parent) not in (tmp_path / "model/asvr.json").read_text()
    picture = Image.new("RGB", (70, 50), (200, 30, 30))
    talk = dict(images=[picture], messages=[{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a house"}])
    assert own.score([talk]) == again.score([talk])
    asked = [pretrained.chat(picture, "what is it?", max_new_tokens=4) for pretrained in (own, again)]
    assert asked[0] == asked[1]
    for of_target in target_maps(again, picture):
        assert of_target.right_RCD.shape == (*again.model.encoder.grid, 2)
    assert as_seen(again, picture).size[0] >= 200
    with pytest.raises(ValueError, match=f"its encoder is {type(own.model.encoder).__name__}; LLaVA folders take"):
        export_llava(own, tmp_path / "llava")


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_counts_and_plans(name, encoders):
    text = dry_run(config(encoders[name], name))
    assert "not counted" not in text and "not planned" not in text


def test_two_processes_give_one_process_losses(trained, encoders, tmp_path):
    runs = [
        dict(
            config=str(ROOT / "configs/examples/custom_components.py"),
            work_dir=str(tmp_path / kind),
            options=config_options(encoders["trained"], "trained") | {"parallel": dict(type=kind)},
        )
        for kind in ("DDP", "FSDP2")
    ]
    launch(tmp_path, runs, 2)
    for kind in ("DDP", "FSDP2"):
        assert losses(tmp_path / kind) == pytest.approx(losses(trained("trained")), abs=2e-5)


def test_codes_alone_are_cached_for_the_tokens_of_two_grids(trained, encoders, tmp_path):
    """Pixels come from worker processes; of each grid, a token takes the code of the cell that it stands in."""
    fitted = with_fitted(encoders, "sequence", trained("sequence"))
    entry = dict(config(encoders["sequence"], "sequence").model.reconstruction[0].to_dict(), name="pixel")
    del entry["fit"]
    entry |= dict(tokenizer=encoders["codes"]["tokenizer"], resample="nearest")
    options = {"model.reconstruction": [*fitted["model.reconstruction"], entry], "data.num_workers": 1}
    options["evaluation"] = dict(dataset=dict(type="EasyVQA", split="test", max_images=3), limit=4, max_new_tokens=4)
    results = [
        run(config(encoders["sequence"], "sequence", options | {"data.cache": cache}), tmp_path / str(cache))
        for cache in (False, "codes")
    ]
    assert losses(tmp_path / "False") == losses(tmp_path / "codes")
    first, second = (result["train"] for result in results)
    assert first["losses"] == second["losses"] and first["losses"].keys() == {"text", "semantic", "pixel"}
    assert first["codes"] == second["codes"] and first["by_kind"] == second["by_kind"]
    (target,) = (t for t in load(tmp_path / "codes", device="cpu").model.targets if t.name == "pixel")
    codes = target.to_encoder_grid(torch.arange(4).view(1, 4, 1))[0, :, 0]
    assert codes[:4].tolist() == [0, 1, 2, 3]
    assert torch.equal(codes[4:].view(8, 8), torch.arange(4).view(2, 2).repeat_interleave(4, 0).repeat_interleave(4, 1))


def test_a_tokenizer_is_fitted_on_joined_features(encoders, tmp_path):
    tokenizer = SemanticTokenizer(encoder=encoders["channel"], depth=2, codebook_size=4)
    report = fit_semantic_tokenizer(
        tokenizer,
        EasyVQA(split="train", max_images=8),
        work_dir=tmp_path,
        batch_size=4,
        num_workers=1,
        device="cpu",
    )
    assert report["pictures"] == 8 and tokenizer.fitted
    with pytest.raises(ValueError, match="perceptual.encoder: MultiEncoder does not take one image"):
        PerceptualLoss(encoders["channel"])


def test_what_is_computed_again_is_counted(encoders):
    full = dict(encoders["s2"]["encoder"], activation_checkpointing="full")

    def recomputed(encoder: dict) -> bool:
        return "encoder" in recomputed_parts(config(encoder, "", {"model.reconstruction": []}).model)

    assert recomputed(full) and recomputed(dict(type="S2", encoder=full))
    assert recomputed(dict(type="MultiEncoder", encoders=[full, full]))
    assert not recomputed(dict(type="MultiEncoder", encoders=[full, encoders["codes"]]))


def test_flops_are_those_of_the_parts(encoders):
    def of(encoder: dict, **changes) -> int:
        stage = Recipe(config(encoder, "", {"model.reconstruction": []} | changes)).stages["train"]
        found = {part.name: part.flops for part in forward_parts(build_meta(stage), Sample())}
        return found["encoder"]

    parts = encoders["sequence"]["encoders"]
    assert of(encoders["sequence"]) == sum(of(part) for part in parts) > 0
    assert of(encoders["s2"]) == pytest.approx(5 * of(encoders["s2"]["encoder"]), rel=0.1)  # and interpolation


def test_features_are_kept_by_what_decides_them_wherever_the_files_lie(trained, encoders, tmp_path):
    (folder,) = (path.parent for path in (trained("channel") / "cache").glob("*/features.npy"))
    moved = json.loads(json.dumps(encoders["channel"]))
    for part in moved["encoders"][:2]:
        part["name"] = str(shutil.copytree(part["name"], tmp_path / Path(part["name"]).name))
    shared = {"data.cache_dir": str(trained("channel") / "cache")}
    run(config(moved, "channel", shared), tmp_path / "moved")
    assert losses(tmp_path / "moved") == losses(trained("channel"))
    assert {path.parent for path in (trained("channel") / "cache").glob("*/features.npy")} == {folder}
    shared["model.encoder.resample"] = "area"
    run(config(moved, "channel", shared), tmp_path / "area")
    assert len(list((trained("channel") / "cache").glob("*/features.npy"))) == 2
