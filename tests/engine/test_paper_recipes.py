"""Configs of the paper's rows that are more than another dataset, at tiny size: both stages train."""

from pathlib import Path

import pytest
from recipe_helpers import SIGLIP, final, make_data, make_zoo, options
from run_helpers import ROOT, read_metrics

from asvr.engine.run import run
from asvr.recipe.config import load_config

CODES = {"model.encoder.tokenizer.depth": 2, "model.encoder.tokenizer.codebook_size": 8}
OWN_TOWER = {"model.reconstruction.0.tokenizer.encoder.name": SIGLIP}
SEMANTIC, NONE = {"semantic"}, set()


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


@pytest.mark.parametrize(
    ("name", "changes", "stages"),
    [
        ("discrete_asvr", CODES | OWN_TOWER, dict(pretrain=SEMANTIC, finetune=SEMANTIC)),
        ("discrete_llava", CODES, dict(pretrain=NONE, finetune=NONE)),
        ("highres1152_asvr", OWN_TOWER, dict(pretrain=SEMANTIC, finetune=SEMANTIC)),
        ("onevision_asvr", {}, dict(pretrain=SEMANTIC, midtrain=SEMANTIC, finetune=SEMANTIC)),
        ("finetune_only", {}, dict(pretrain=NONE, finetune=SEMANTIC)),
        ("pretrain_only", {}, dict(pretrain=SEMANTIC, finetune=NONE)),
    ],
)
def test_a_row_trains(name, changes, stages, data, tmp_path):
    own = options(data, [] if name.endswith("llava") else ["semantic"]) | changes
    own |= {key.replace("finetune", "midtrain"): value for key, value in own.items() if "midtrain" in stages}
    run(load_config(ROOT / f"configs/paper/{name}.py", own), tmp_path)
    lines = read_metrics(tmp_path)
    assert [(line["stage"], line["step"]) for line in lines] == [(stage, n) for stage in stages for n in (1, 2, 3)]
    for line in lines:
        losses = {key[5:]: value for key, value in line.items() if key.startswith("loss_")}
        assert losses.keys() == {"text", *stages[line["stage"]]} and all(0 < loss < 20 for loss in losses.values())
    llm = {key for key in final(tmp_path, "finetune") if key.startswith("llm.")}
    assert len(llm) == 21  # of two blocks, embeddings, norm and LM head: the whole of it
    for stage, targets in stages.items():
        heads = {key.split(".")[1] for key in final(tmp_path, stage) if key.startswith("heads.")}
        assert heads == targets
