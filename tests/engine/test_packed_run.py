"""Packing and grouping change the time of a step, not what it learns."""

import pytest
from run_helpers import ROOT, TINY, read_metrics

from asvr.engine import stages
from asvr.engine.run import run
from asvr.recipe.config import load_config

SHORT = TINY | {
    "schedule.steps": 6,
    "stages.pretrain.schedule.steps": 2,
    "stages.blind.evaluation": None,
    "stages.finetune.evaluation": None,
    "runtime.log_interval": 1,
}
pytestmark = pytest.mark.usefixtures("quick")
KEYS = ("loss", "loss_text", "loss_semantic", "grad_norm")


def losses(work_dir, **options) -> list[dict]:
    cfg = load_config(ROOT / "configs/asvr_mini.py", SHORT | options)
    run(cfg, work_dir)
    return read_metrics(work_dir)


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("padded") / "run")


@pytest.mark.parametrize(
    "options",
    [
        {"data.pack": True},
        {"data.pack": dict(max_tokens=256, max_images=3)},
        {"data.pack": True, "data.num_workers": 1},
        {"data.group": "length"},
        {"data.group": "modality"},
    ],
    ids=str,
)
def test_a_run_has_the_same_losses(options, padded, tmp_path):
    lines = losses(tmp_path / "run", **options)
    assert len(lines) == len(padded)
    for own, other in zip(lines, padded, strict=True):
        assert all(own[key] == pytest.approx(other[key], rel=2e-4) for key in KEYS if key in other)
        assert own["step"] == other["step"] and own["stage"] == other["stage"]
    share = [line["real_tokens_percent"] for line in lines]
    assert all(value == 100 for value in share) if "data.pack" in options else min(share) < 100
    assert "attention: sdpa" in (tmp_path / "run" / "train.log").read_text()


def test_blocks_are_compiled_where_the_config_asks(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(stages, "compile_blocks", lambda model: asked.append(len(model.llm.blocks)))
    losses(tmp_path / "run", **{"runtime.compile": True})
    assert len(asked) == 3 and min(asked) > 0  # one a stage


def test_impossible_settings_are_told(tmp_path):
    for options, message in (
        ({"data.pack": dict(max_tokns=3)}, "data.pack=.*expected True, False or dict"),
        ({"data.pack": True, "data.group": "length"}, "data.group: packed samples"),
        ({"data.pack": dict(max_tokens=20)}, "data.pack.max_tokens=20: expected at least data.max_length=128"),
        ({"runtime.attention": "flash"}, "runtime.attention='flash': expected one of 'auto'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(load_config(ROOT / "configs/asvr_mini.py", SHORT | options), tmp_path / "run")
