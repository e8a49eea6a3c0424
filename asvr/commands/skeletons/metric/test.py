"""Tests of MyComponent: pytest test_my_component.py"""

from pathlib import Path

from my_component import MyComponent

from asvr.engine.run import run
from asvr.recipe.config import load_config

SMALL = {"schedule.steps": 2, "data.train.max_images": 8, "text_tokenizer.corpus.max_images": 8}
SMALL |= {"evaluation.dataset.max_images": 2, "data.micro_batch": 4, "data.global_batch": 4}
SMALL |= {"model.reconstruction.0.tokenizer.codebook_size": 8}


def test_shares_are_averaged():
    metric = MyComponent(name="words")
    metric.update(dict(answer="a red square", expected="red square"))
    metric.update(dict(answer="blue", expected="red"))
    assert metric.compute() == dict(words=0.5, words_words=2.0)


def test_two_steps_train(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)  # where custom_imports finds the module
    config = load_config("my_component_mini.py", SMALL)
    results = run(config, tmp_path / "run")
    assert results["train"]["total"] > 0  # questions that were answered
