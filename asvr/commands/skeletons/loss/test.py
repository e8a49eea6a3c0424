"""Tests of MyComponent: pytest test_my_component.py"""

from pathlib import Path

import pytest
import torch
from my_component import MyComponent
from torch import nn

from asvr.engine.run import run
from asvr.recipe.config import load_config

SMALL = {"schedule.steps": 2, "data.train.max_images": 8, "text_tokenizer.corpus.max_images": 8}
SMALL |= {"evaluation.dataset.max_images": 2, "data.micro_batch": 4, "data.global_batch": 4}
SMALL |= {"model.reconstruction.0.tokenizer.codebook_size": 8}


def test_the_loss_is_summed_over_positions():
    classifiers = nn.ModuleList([nn.Linear(6, 4), nn.Linear(6, 4)])
    states, codes = torch.randn(5, 2, 6), torch.randint(4, (5, 2))
    loss, right = MyComponent(smoothing=0.0)(states, classifiers, codes)
    logits = torch.stack([classifiers[depth](states[:, depth]) for depth in range(2)], dim=1)
    mean = nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten())
    torch.testing.assert_close(loss, 5 * mean)
    assert right.tolist() == (logits.argmax(-1) == codes).sum(0).tolist()


def test_a_wrong_smoothing_is_refused():
    with pytest.raises(ValueError, match="smoothing=1"):
        MyComponent(smoothing=1)


def test_two_steps_train(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)  # where custom_imports finds the module
    config = load_config("my_component_mini.py", SMALL)
    results = run(config, tmp_path / "run")
    assert results["train"]["total"] > 0  # questions that were answered
