"""Tests of MyComponent: pytest test_my_component.py"""

from pathlib import Path

import pytest
import torch
from my_component import MyComponent

from asvr.engine.run import run
from asvr.recipe.config import load_config

SMALL = {"schedule.steps": 2, "data.train.max_images": 8, "text_tokenizer.corpus.max_images": 8}
SMALL |= {"evaluation.dataset.max_images": 2, "data.micro_batch": 4, "data.global_batch": 4}
SMALL |= {"model.reconstruction.0.tokenizer.codebook_size": 8}


def test_each_patch_is_a_token():
    encoder = MyComponent(image_size=32, patch=8)
    features = encoder(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, encoder.num_tokens, encoder.width) == (2, 16, 48)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="image_size=30"):
        MyComponent(image_size=30, patch=8)


def test_two_steps_train(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)  # where custom_imports finds the module
    config = load_config("my_component_mini.py", SMALL)
    results = run(config, tmp_path / "run")
    assert results["train"]["total"] > 0  # questions that were answered
