"""Steps whose losses or gradients are not finite are named and counted, and too many end a run."""

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from engine_helpers import advance, collate, item, runner, tiny_model
from run_helpers import ROOT, TINY, call_tool, read_metrics, tiny_command

from asvr.base.log import logger
from asvr.engine.hooks import ProgressHook, SkipHook
from asvr.engine.optim import build_optim_wrapper
from asvr.engine.run import run
from asvr.evaluation.summary import draw_summary
from asvr.models.vlm import VLM
from asvr.recipe.config import load_config

pytestmark = pytest.mark.usefixtures("tiny_run", "quick")  # in this order: the run is other modules' too
OPTIM = dict(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, clip_grad=1.0, precision="float32")
LAST = "finetune/checkpoints/step_{:08d}/model.safetensors"


@pytest.fixture
def warnings(monkeypatch, caplog):
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "handlers", [])
    caplog.set_level(logging.WARNING, "asvr")
    return lambda: [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]


def poison(monkeypatch, poisoned) -> None:
    """Let the losses of a batch be NaN where ``poisoned`` says so of its samples' names."""
    forward = VLM.forward

    def spoilt(self, batch, totals=None):
        out = forward(self, batch, totals)
        if self.training and poisoned(batch.sample_ids):
            return {key: value * float("nan") if value.requires_grad else value for key, value in out.items()}
        return out

    monkeypatch.setattr(VLM, "forward", spoilt)


def window(model, *names: str) -> list:
    """Micro-batches of one sample each."""
    return [collate(model)([item(words=3 + i, sample_id=name)]) for i, name in enumerate(names)]


def hooks(model, tmp_path, *, limit: int = 10) -> tuple:
    state = runner(model, build_optim_wrapper(model, OPTIM), steps=8)
    own = [
        SkipHook(stage="tune", interval=2, limit=limit),
        ProgressHook(file=str(tmp_path / "metrics.jsonl"), stage="tune", interval=2),
    ]
    for hook in own:
        hook.before_train(state)
    return state, own


def test_skipped_steps_are_named_counted_and_left_out_of_the_means(tmp_path, monkeypatch, warnings):
    poison(monkeypatch, lambda names: "bad" in names)
    model = tiny_model()
    state, own = hooks(model, tmp_path)
    steps = [("a", "b"), ("c", "bad"), ("bad",), ("bad", "d"), ("e",), ("f",)]
    logs = [advance(state, window(model, *names), *own) for names in steps]
    first, second, third = read_metrics(tmp_path)
    assert first["loss_text"] == first["loss"] == pytest.approx(logs[0]["text"].item()) and first["skipped"] == 1
    assert first["grad_norm"] > 0 and 0 <= first["acc_text"] <= 1
    assert second["loss"] is None and second["grad_norm"] is None and second["skipped"] == 3
    assert "loss_text" not in second and "acc_text" not in second
    both = (logs[4]["text"] + logs[5]["text"]).item() / 2
    assert third["loss"] == pytest.approx(both) and third["skipped"] == 3
    assert [message.partition("finite; ")[::2] for message in warnings() if message.startswith("tune, step")] == [
        ("tune, step 2: skipped, since the loss text was not ", "its samples: c, bad"),
        ("tune, step 3: skipped, since the loss text was not ", "its samples: bad"),
        ("tune, step 4: skipped, since the loss text was not ", "its samples: bad, d"),
    ]
    draw_summary(tmp_path, {})


def test_nothing_is_looked_at_before_the_interval_ends(tmp_path, monkeypatch, warnings):
    poison(monkeypatch, lambda names: "bad" in names)
    model = tiny_model()
    state, own = hooks(model, tmp_path)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: pytest.fail("a step waited for the device"))
    advance(state, window(model, "bad"), *own)
    assert warnings() == []


def test_more_than_the_limit_stop_the_run(tmp_path, monkeypatch):
    poison(monkeypatch, lambda names: "bad" in names)
    model = tiny_model()
    state, own = hooks(model, tmp_path, limit=2)
    for _ in range(2):
        advance(state, window(model, "bad"), *own)
    assert state.train_loop.stop is None
    for _ in range(2):
        advance(state, window(model, "bad"), *own)
    assert isinstance(state.train_loop.stop, ValueError)
    assert "stage tune: 4 steps were skipped" in str(state.train_loop.stop)


def test_a_stage_of_which_every_step_was_skipped_is_no_success(tmp_path, monkeypatch):
    poison(monkeypatch, lambda names: "bad" in names)
    model = tiny_model()
    state, own = hooks(model, tmp_path)
    for _ in range(7):
        advance(state, window(model, "bad"), *own)
    assert state.train_loop.stop is None
    advance(state, window(model, "bad"), *own)
    assert "all 8 steps were skipped" in str(state.train_loop.stop)


def test_a_gradient_that_is_not_finite_is_named(tmp_path, monkeypatch, warnings):
    model = tiny_model()
    state, own = hooks(model, tmp_path)
    next(model.projector.parameters()).register_hook(lambda grad: grad * float("nan"))
    for _ in range(2):
        advance(state, window(model, "a"), *own)
    assert all("since a gradient was not finite" in message for message in warnings()) and len(warnings()) == 2


# Whole runs -----------------------------------------------------------------------------------------------------

CONFIG = ROOT / "configs/asvr_mini.py"
SHORT = {"schedule.steps": 30}


def again(work_dir: Path, **changes) -> None:
    run(load_config(CONFIG, TINY | SHORT | changes), work_dir, only="finetune")


@pytest.fixture
def start(tiny_run, tmp_path) -> Path:
    """A run that is to train its last stage."""
    folder = Path(shutil.copytree(tiny_run, tmp_path / "start"))
    shutil.rmtree(folder / "finetune")
    return folder


def curve(work_dir: Path) -> list:
    keys = ("step", "loss", "loss_text", "acc_semantic", "grad_norm", "skipped")
    return [[line.get(key) for key in keys] for line in read_metrics(work_dir) if line["stage"] == "finetune"]


def test_a_run_with_skipped_steps_goes_on_exactly(start, tmp_path, monkeypatch):
    """Killed behind each checkpoint, so that skipped steps lie on either side of it within a log interval."""
    poison(monkeypatch, lambda names: names[0].endswith("7"))
    whole = Path(shutil.copytree(start, tmp_path / "whole"))
    again(whole)
    assert 3 <= curve(whole)[-1][-1] <= 10
    for step in (7, 14, 21):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            end_behind(step, patch)
            again(start)
    again(start)
    assert curve(start) == curve(whole)
    assert (start / LAST.format(30)).read_bytes() == (whole / LAST.format(30)).read_bytes()
    named = [
        re.findall(r"finetune, step (\d+): skipped", (folder / "train.log").read_text()) for folder in (start, whole)
    ]
    assert set(named[0]) == set(named[1]) and len(named[1]) == curve(whole)[-1][-1]


def end_behind(step: int, patch) -> None:
    """As a kill does, once the checkpoint of ``step`` is written."""
    from asvr.engine.hooks import CheckpointHook

    save = CheckpointHook.save

    def save_and_end(self, runner):
        save(self, runner)
        if runner.iter == step:
            raise KeyboardInterrupt

    patch.setattr(CheckpointHook, "save", save_and_end)


def test_too_many_stop_the_command_with_its_state_and_a_higher_limit_goes_on(start, monkeypatch):
    poison(monkeypatch, lambda names: True)

    def command(limit: int):
        return call_tool(
            *tiny_command(start)[1:],
            "schedule.steps=30",
            f"runtime.max_skipped={limit}",
            "--stage",
            "finetune",
        )

    for limit, step in ((3, 5), (3, 5), (6, 10)):
        done = command(limit)
        assert done.returncode == 1, done.stderr
        message = done.stderr.strip().splitlines()[-1]
        assert (
            message.startswith(f"error: stage finetune: {step} steps were skipped") and "runtime.max_skipped" in message
        )
        newest = sorted((start / "finetune" / "checkpoints").glob("step_*"))[-1]
        assert newest.name == f"step_{step:08d}"
    assert json.loads((newest / "checkpoint.json").read_text())["step"] == 10
