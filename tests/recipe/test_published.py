"""What a config says of the row of a paper that it stands for: checked, kept, and of that file alone."""

from pathlib import Path

import pytest
from run_helpers import ROOT

from asvr.recipe.config import dump_config, load_config
from asvr.recipe.recipe import Recipe
from asvr.recipe.validate import check_config

CONFIG = ROOT / "configs/paper/asvr.py"


@pytest.fixture
def derived(tmp_path):
    def write(text: str = "") -> Path:
        file = tmp_path / "mine.py"
        file.write_text(f'_base_ = ["{CONFIG}"]\n{text}')
        return file

    return write


def test_it_is_kept_in_a_dumped_config_and_no_part_of_a_stage(tmp_path):
    config = load_config(CONFIG)
    dump_config(config, tmp_path / "config.py")
    assert load_config(tmp_path / "config.py").published == config.published
    assert config.published.row == "ASVR" and config.published.scores.TVQA == 59.5
    assert "published" not in Recipe(config).last.to_dict()


def test_a_config_does_not_inherit_the_figures_of_its_base(derived):
    config = load_config(derived())
    assert "published" not in config
    check_config(config)


def test_a_config_may_have_its_own(derived):
    own = dict(table="mine", row="mine", average=1.0, scores=dict(TVQA=1), differs=[])
    config = load_config(derived(f"published = {dict(own, _delete_=True)!r}"))
    check_config(config)
    assert config.published.to_dict() == own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("published = dict(row='')", "published.row='': expected the row's name"),
        (
            "published = dict(scores=dict(_delete_=True, TVQA='9'))",
            "published.scores=.*: expected a dict of a number for",
        ),
        ("published = dict(scores=dict(_delete_=True))", "published.scores={}: expected"),
        ("published = dict(differs='much')", "published.differs='much': expected a list of texts"),
        ("published = dict(mean=3)", "published.mean: unknown field; "),
        ("published = dict(_delete_=True, table='T1')", "published.average is missing"),
        ("stages = dict(finetune=dict(published=dict()))", "published: unknown; "),
    ],
)
def test_what_is_wrong_in_it_is_told(derived, text, message):
    with pytest.raises(ValueError, match=message):
        check_config(load_config(derived(text)))
