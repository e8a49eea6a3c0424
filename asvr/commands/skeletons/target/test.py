"""Tests of MyComponent: pytest test_my_component.py"""

from pathlib import Path

import torch
from my_component import MyComponent
from PIL import Image
from torch import nn

import asvr
from asvr.engine.run import run
from asvr.recipe.config import load_config

SMALL = {"schedule.steps": 2, "data.train.max_images": 8, "text_tokenizer.corpus.max_images": 8}
SMALL |= {"evaluation.dataset.max_images": 2, "data.micro_batch": 4, "data.global_batch": 4}


def test_the_truth_has_a_row_for_each_visual_token():
    encoder, llm = nn.Identity(), nn.Identity()  # stand-ins with the sizes that a target reads
    encoder.grid, encoder.num_tokens, encoder.width = (2, 2), 4, 8
    llm.hidden_size, llm.num_layers = 16, 2
    target = MyComponent(encoder=encoder, llm=llm, name="own")
    assert target.truth({}, torch.ones(3, 4, 8))["features"].shape == (3, 4, 8)
    assert target.head(torch.ones(5, 16)).shape == (5, 8)


def test_two_steps_train(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)  # where custom_imports finds the module
    config = load_config("my_component_mini.py", SMALL)
    results = run(config, tmp_path / "run")
    assert results["train"]["total"] > 0  # questions that were answered
    loaded = asvr.load(tmp_path / "run", device="cpu")
    [found] = loaded.token_maps(Image.new("RGB", (64, 64)))  # what `inspect` returns
    assert found.values_RC["cosine"].shape == loaded.model.encoder.grid
