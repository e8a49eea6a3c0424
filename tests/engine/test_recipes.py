"""The recipes train for real when the folders are there: tiny random models in Hugging Face's own layout."""

import json
from pathlib import Path

import pytest
import torch
from recipe_helpers import SIGLIP, TOKENIZER, TOKENIZERS, final, make_data, make_zoo, options
from run_helpers import ROOT, call_tool, read_metrics
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from asvr.benchmarks.questions import evaluate_run
from asvr.engine.run import run
from asvr.recipe.config import load_config

RECIPES = {
    "llava_vicuna7b.py": [],
    "asvr_vicuna7b.py": ["semantic"],
    "asvr_vicuna7b_released.py": ["semantic"],
    "asvr_vicuna7b_appearance.py": ["appearance"],
    "asvr_vicuna7b_dual.py": ["semantic", "appearance"],
    "asvr_vicuna13b.py": ["semantic"],
    "asvr_mistral7b.py": ["semantic"],
    "asvr_qwen2_5_7b.py": ["semantic"],
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def use_zoo(zoo, monkeypatch, quick):
    monkeypatch.setenv("ASVR_MODEL_ZOO", str(zoo))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def train(recipe: str, data: Path, work_dir: Path, changes: dict | None = None, **kwargs) -> dict:
    cfg = load_config(ROOT / "configs" / recipe, options(data, RECIPES[recipe]) | (changes or {}))
    return run(cfg, work_dir, **kwargs)


def sources(work_dir: Path, stage: str) -> dict:
    meta = sorted((work_dir / stage / "checkpoints").iterdir())[-1] / "checkpoint.json"
    return {name: entry["source"] for name, entry in json.loads(meta.read_text())["frozen"].items()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_both_stages_train(recipe, zoo, data, tmp_path):
    train(recipe, data, tmp_path)
    lines = read_metrics(tmp_path)
    assert [(line["stage"], line["step"]) for line in lines] == [
        (s, n) for s in ("pretrain", "finetune") for n in (1, 2, 3)
    ]
    for line in lines:
        assert line["grad_norm"] > 0 and 0 < line["loss_text"] < 20
        assert {key[5:] for key in line if key.startswith("loss_")} == {"text", *RECIPES[recipe]}
    cfg = load_config(ROOT / "configs" / recipe)
    llm = cfg.model.llm.name
    trained, before = final(tmp_path, "finetune"), final(tmp_path, "pretrain")
    assert {key.split(".")[0] for key in before} == {"projector"} | ({"heads"} if RECIPES[recipe] else set())
    assert {key.split(".")[0] for key in trained} == {key.split(".")[0] for key in before} | {"llm"}
    frozen = {"encoder": SIGLIP} | {f"tokenizer.{name}": TOKENIZERS[name] for name in RECIPES[recipe]}
    assert sources(tmp_path, "pretrain") == frozen | {"llm": llm} and sources(tmp_path, "finetune") == frozen
    with safe_open(zoo / llm / "model.safetensors", "pt") as file:
        weights = {f"llm.model.{key}": file.get_tensor(key) for key in file.keys()}
    assert weights.keys() == {key for key in trained if key.startswith("llm.")}
    moved = [key for key, value in weights.items() if not torch.equal(value.float(), trained[key].float())]
    assert "llm.model.model.layers.0.self_attn.q_proj.weight" in moved
    assert all(not torch.equal(trained[key], value) for key, value in before.items() if value.ndim > 1)


def test_a_recipe_goes_on_and_refuses_another_tower(zoo, data, tmp_path):
    train("asvr_vicuna7b.py", data, tmp_path / "whole")
    train("asvr_vicuna7b.py", data, tmp_path / "run", {"runtime.checkpoint_interval": 2})
    folder = tmp_path / "run" / "finetune"
    (folder / "done.json").unlink()
    for file in (folder / "checkpoints" / "step_00000003").iterdir():
        file.unlink()
    (folder / "checkpoints" / "step_00000003").rmdir()
    weights = zoo / SIGLIP / "model.safetensors"
    kept = weights.read_bytes()
    try:
        tensors = load_file(weights)
        save_file({key: value + 0.01 for key, value in tensors.items()}, weights, metadata={"format": "pt"})
        with pytest.raises(ValueError, match="encoder.fingerprint is .* in the folder"):
            train("asvr_vicuna7b.py", data, tmp_path / "run")
    finally:
        weights.write_bytes(kept)
    train("asvr_vicuna7b.py", data, tmp_path / "run")
    whole, resumed = final(tmp_path / "whole", "finetune"), final(tmp_path / "run", "finetune")
    assert whole.keys() == resumed.keys() and all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_a_trained_recipe_answers_a_question_file(data, tmp_path):
    train("llava_vicuna7b.py", data, tmp_path)
    cfg = load_config(ROOT / "configs/llava_vicuna7b.py", options(data, []))
    result = evaluate_run(
        cfg,
        tmp_path,
        stage=None,
        questions=data / "chats.json",
        image_folder=data,
        limit=3,
        out=tmp_path / "answers",
    )
    rows = [json.loads(line) for line in (tmp_path / "answers" / "answers.jsonl").read_text().splitlines()]
    assert result["total"] == len(rows) == 3
    assert [row["expected"] for row in rows] == ["it is blue", "two dogs", "red"]
    cfg.evaluation = dict(dataset=dict(type="EasyVQA"), limit=1)  # of the config's own questions
    asked = dict(questions=data / "chats.json", image_folder=data, limit=None, out=tmp_path / "all")
    assert evaluate_run(cfg, tmp_path, stage=None, **asked)["total"] > 3


def test_broken_rows_are_left_out_and_counted(data, tmp_path):
    rows = json.loads((data / "captions.json").read_text())
    rows[2] = dict(image="none.png", conversations=rows[2]["conversations"])
    file = tmp_path / "broken.json"
    file.write_text(json.dumps(rows))
    changes = {"data.train.ann_file": str(file)}
    with pytest.raises(ValueError, match="broken.json, record 2: the image .*none.png is missing"):
        train("llava_vicuna7b.py", data, tmp_path / "raise", changes, only="pretrain")
    with pytest.raises(ValueError, match="broken.json, record 2: the image .*none.png is missing"):
        train("llava_vicuna7b.py", data, tmp_path / "cached", changes | {"data.cache": True}, only="pretrain")
    train("llava_vicuna7b.py", data, tmp_path / "skip", changes | {"data.on_error": "skip"}, only="pretrain")
    assert read_metrics(tmp_path / "skip")[-1]["refused"] == {"missing image": 2}  # 12 samples of 6 rows
    assert "broken.json, record 2" in (tmp_path / "skip" / "train.log").read_text()


def test_without_the_folders_every_missing_model_is_named(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("ASVR_MODEL_ZOO", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    done = call_tool("tools/train.py", "configs/asvr_vicuna7b.py", "--work-dir", tmp_path / "w")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "3 pretrained models are missing" in done.stderr
    for name, size, fetch in (
        (SIGLIP, "GB", f"hf download {SIGLIP}"),
        ("lmsys/vicuna-7b-v1.5", "13.48 GB", "hf download lmsys/vicuna-7b-v1.5"),
        (TOKENIZER, "GB", "asvr train-tokenizer tokenizers/siglip_so400m_rvq8"),
    ):
        entry = done.stderr.split(f": {name}")[1].split("\n- ")[0]
        assert size in entry.splitlines()[0] and fetch in entry
        assert str(tmp_path / "empty" / name) in entry
    assert "Hugging Face cache" in done.stderr and not (tmp_path / "w").exists()
