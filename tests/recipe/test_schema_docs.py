"""What the schema says of each field, for the reference, is what the code does."""

import inspect

import pytest

from asvr.data.images import MAX_PIXELS
from asvr.data.workers import TIMEOUT
from asvr.engine.runner import DEFAULT_MAX_SKIPPED
from asvr.evaluation.accuracy import evaluate
from asvr.evaluation.metrics import ACCURACY, DEFAULT
from asvr.models.attention import AUTO
from asvr.models.targets import CodeTarget
from asvr.models.targets.base import Target
from asvr.recipe.entries import EMA, GROUP, PROFILE, SOURCE, TARGET
from asvr.recipe.schema import DATA, EVALUATION, OPTIM, PUBLISHED, RUNTIME, SCHEDULE, SECTIONS, VALIDATION
from asvr.recipe.sections import SECTION_DOCS, STAGE_DOCS
from asvr.recipe.training import PRESET
from asvr.recipe.validate import BY_STAGE, OF_STAGE, ONCE, OTHER

ALL = SECTIONS | dict(target=TARGET, source=SOURCE, group=GROUP, ema=EMA, profile=PROFILE)


def test_every_section_and_field_is_described():
    assert set(SECTION_DOCS) == {*ONCE, *BY_STAGE, *OTHER}
    assert set(STAGE_DOCS) == set(OF_STAGE) - set(BY_STAGE)
    lacking = [f"{section}.{name}" for section, fields in ALL.items() for name, f in fields.items() if not f.doc]
    assert lacking == []


@pytest.mark.parametrize("section", ALL)
def test_a_default_is_a_value_that_the_field_takes(section):
    """None where the field is left out is no value of some fields."""
    wrong = [
        name
        for name, field in ALL[section].items()
        if not field.required and field.default is not None and not field.test(field.default)
    ]
    assert wrong == []


def test_defaults_are_those_of_the_code():
    signature = inspect.signature(evaluate).parameters
    asked = {name: signature[name].default for name in EVALUATION if name != "dataset"}
    assert {name: EVALUATION[name].default for name in asked} == asked | dict(metrics=list(DEFAULT))
    assert VALIDATION["best"].default == ACCURACY
    constructor = {**inspect.signature(Target).parameters, **inspect.signature(CodeTarget).parameters}
    for name in ("weight", "tap", "resample", "supervise", "fit"):
        assert TARGET[name].default == constructor[name].default
    assert RUNTIME["max_skipped"].default == DEFAULT_MAX_SKIPPED
    assert RUNTIME["attention"].default == AUTO
    assert SCHEDULE["preset"].default == PRESET


def test_numbers_in_the_texts_are_those_of_the_code():
    assert f"{MAX_PIXELS:,}" in DATA["max_pixels"].doc
    assert f"{TIMEOUT:.0f}" in DATA["worker_timeout"].doc


def test_what_must_be_given():
    assert {name for name, field in OPTIM.items() if field.required} == {"type", "lr", "clip_grad", "precision"}
    assert all(field.required for field in PUBLISHED.values())
