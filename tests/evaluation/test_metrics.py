"""Metrics that a config names, and what is told where one is wrong."""

import base64
import io
import json

import pytest
from data_helpers import byte_level
from PIL import Image
from run_helpers import ROOT, TINY

from asvr.data.records import ConversationDataset
from asvr.engine.run import run
from asvr.evaluation.metrics import ExactMatch, Metric, count, row_of
from asvr.recipe.config import load_config
from asvr.recipe.validate import check_config
from asvr.registry import METRICS

ROWS = [
    dict(kind=kind, answer=answer, expected="yes", right=answer == "yes")
    for kind, answer in (("color", "yes"), ("color", "no"), ("shape", "yes"))
]


@METRICS.register_module()
class Given(Metric):
    """Gives what it is given."""

    def __init__(self, *, numbers: dict | list, after: str = ""):
        self.numbers, self.after = numbers, after

    def update(self, row: dict) -> None:
        if self.after == row["answer"]:
            raise ValueError(f"Given cannot count {row['answer']!r}")

    def compute(self):
        return self.numbers


@METRICS.register_module()
class Nothing:
    """Has none of the methods."""


def test_exact_match_is_the_accuracy_by_kind():
    assert count([dict(type="ExactMatch")], ROWS) == dict(
        accuracy=2 / 3,
        right=2,
        total=3,
        by_kind=dict(color=dict(accuracy=0.5, total=2), shape=dict(accuracy=1.0, total=1)),
    )
    with pytest.raises(NotImplementedError, match="Metric must return its numbers"):
        Metric().compute()
    assert METRICS.get("ExactMatch") is ExactMatch


@pytest.mark.parametrize(
    "numbers, message",
    [
        (dict(losses=1.0), "Given uses the name 'losses', which is taken: give its number another name"),
        (dict(accuracy=1.0), "Given uses the name 'accuracy', which is taken"),
        (dict(own="much"), "Given returned own='much': expected an int or a float"),
        (dict(own=True), "expected an int or a float"),
        ([1.0], r"Given.compute\(\) returned \[1.0\]: expected a dict of numbers by name"),
    ],
)
def test_what_is_no_number_or_has_a_name_that_is_taken(numbers, message):
    with pytest.raises(ValueError, match=message):
        count([dict(type="ExactMatch"), dict(type="Given", numbers=numbers)], ROWS)


@pytest.mark.parametrize("form", ["name", "names", "base64", "image", "bytes", "part"])
def test_a_row_names_images_and_holds_none(form):
    """Rows are lines of JSON files."""
    image, file = Image.new("RGB", (30, 30), "red"), io.BytesIO()
    image.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    given = dict(name="a.png", names=["a.png"], base64=url, image=[image], bytes=dict(bytes=file.getvalue(), path=None))
    question = [dict(type="image_url", image_url=url)] * (form == "part") + [dict(type="text", text="q")]
    record = dict(messages=[dict(role="user", content=question), dict(role="assistant", content="a")])

    class Own(ConversationDataset):
        source = "own"

        def record(self, i):
            return record | (dict(image=given[form]) if form in given else {})

        def image(self, name):
            return name, image

    dataset = Own(tokenizer=byte_level(), template="vicuna_v1")
    row = row_of(dataset, 0, dataset.question(0), "b")
    told = f"in the record ({len(file.getvalue())} bytes)"
    expected = dict(given, base64=told, bytes=told, part=told, image="in the record")
    assert json.loads(json.dumps(row))["image"] == expected[form]


def test_two_metrics_have_two_names():
    one, other = (dict(type="Given", numbers=dict(own=value)) for value in (1, 2))
    assert count([one], ROWS) == dict(own=1)
    with pytest.raises(ValueError, match="Given uses the name 'own', which is taken"):
        count([one, other], ROWS)


def mini(**options):
    return load_config(ROOT / "configs/asvr_mini.py", TINY | options)


VALIDATION = {"stages.finetune.validation": dict(dataset=dict(type="EasyVQA", split="test"), interval=2)}


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("evaluation.metrics", "ExactMatch", "evaluation.metrics='ExactMatch': expected a list of metrics"),
        ("evaluation.metrics", [], r"evaluation.metrics=\[\]: expected a list of metrics"),
        (
            "evaluation.metrics",
            [dict(type="ExactMach")],
            r"evaluation.metrics\[0\].type='ExactMach': no such metric; did you mean 'ExactMatch'",
        ),
        ("evaluation.metrics", [dict(type="ExactMatch", of=1)], r"evaluation.metrics\[0\].of: ExactMatch has no such"),
        ("evaluation.metrics", [dict(type="Given")], r"evaluation.metrics\[0\].numbers is missing: Given needs it"),
        (
            "evaluation.metrics",
            [dict(type="Nothing")],
            r"metrics\[0\].type='Nothing' must have update\(\) and compute\(\)",
        ),
        ("evaluation.metrics", [dict(type="DumpResults", out_file_path="a.pkl")], "must have update"),
        ("evaluation.best", "accuracy", "evaluation.best: unknown field"),
        ("stages.finetune.validation.best", 3, "validation.best=3: expected the name of a number"),
    ],
)
def test_the_config_is_checked(key, value, message):
    with pytest.raises(ValueError, match=message):
        check_config(mini(**VALIDATION | {key: value}))


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"stages.finetune.validation.best": "f1"},
            "stage finetune, validation: validation.best='f1': no metric of validation.metrics gives that number; "
            r"expected one of \['accuracy'\]",
        ),
        (
            {"evaluation.metrics": [dict(type="Given", numbers=dict(stage=1.0))]},
            "stage blind, evaluation: metrics: Given uses the name 'stage', which is taken",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(options, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        run(mini(**VALIDATION | options), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run" / "blind").exists()
