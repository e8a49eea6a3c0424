"""Tests of MyComponent: pytest test_my_component.py"""

from pathlib import Path

from my_component import COLOURS, MyComponent

from asvr.data.images import open_image
from asvr.engine.run import run
from asvr.recipe.config import load_config

SMALL = {"schedule.steps": 2, "data.train.count": 12, "text_tokenizer.corpus.count": 12}
SMALL |= {"evaluation.dataset.count": 6, "data.micro_batch": 4, "data.global_batch": 4}


def test_a_record_names_an_image_and_its_answer():
    dataset = MyComponent(count=10)
    assert len(dataset) == 10 and dataset.record(3) == dataset.record(3)
    for i in range(len(dataset)):
        record = dataset.record(i)
        assert record["conversations"][-1]["value"] in COLOURS
        key, source = dataset.image(record["image"])
        assert open_image(source).size == (64, 64) and dataset.image(record["image"])[0] == key


def test_two_steps_train(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)  # where custom_imports finds the module
    config = load_config("my_component_mini.py", SMALL)
    results = run(config, tmp_path / "run")
    assert results["train"]["total"] > 0  # questions that were answered
