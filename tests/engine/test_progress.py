"""What a run says about itself while it trains."""

import json
import logging
import traceback

import pytest
import torch
from engine_helpers import TARGET, advance, collate, item, runner, tiny_model
from PIL import Image
from run_helpers import ROOT, STEPS, TINY, read_metrics
from torch.utils._python_dispatch import TorchDispatchMode

from asvr.base.log import logger
from asvr.data.batch import Batch
from asvr.data.refusals import Refusal
from asvr.engine.hooks import ProgressHook
from asvr.engine.optim import build_optim_wrapper
from asvr.recipe.config import load_config

OPTIM = dict(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, clip_grad=1.0, precision="float32")


@pytest.fixture
def spoken(monkeypatch, caplog):
    """The lines of the log."""
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "handlers", [])
    caplog.set_level(logging.INFO, "asvr")
    return caplog


@pytest.fixture
def model():
    return tiny_model()


def begin(model, tmp_path, *, interval: int = 2, steps: int = 10):
    hook = ProgressHook(file=str(tmp_path / "metrics.jsonl"), stage="tune", interval=interval)
    state = runner(model, build_optim_wrapper(model, OPTIM), steps=steps)
    hook.before_train(state)
    return state, hook


def picture_batch(model, *words: int) -> Batch:
    return collate(model)([item(words=n, image=Image.new("RGB", (8, 8), (40 * n, 99, 9))) for n in words])


def text_batch(model, *words: int) -> Batch:
    return collate(model)([item(words=n) for n in words])


def test_a_run_writes_every_field_of_every_interval(tiny_run):
    lines = read_metrics(tiny_run)
    interval = TINY["runtime.log_interval"]
    for stage, steps in STEPS.items():
        own = [line for line in lines if line["stage"] == stage]
        assert [line["step"] for line in own] == [*range(interval, steps, interval), steps]
        for line in own:
            assert line["steps"] == steps and line["lr"] > 0 and line["grad_norm"] > 0
            assert line["tokens_per_s"] > 0 and line["peak_memory_gib"] > 0.05
            assert 0 <= line["data_time_percent"] <= 100
            assert "refused" not in line and line["tflop_per_s"] > 0 and "mfu_percent" not in line
        assert own[-1]["eta_s"] == 0 and all(line["eta_s"] > 0 for line in own[:-1])
        assert len(own) == 1 or own[0]["loss"] > own[-1]["loss"]
    blind, pictures, both = ([line for line in lines if line["stage"] == stage][-1] for stage in STEPS)
    assert blind["images_per_s"] == 0 and "loss_semantic" not in blind and "loss_text" in blind
    assert pictures["images_per_s"] > 0 and "loss_text" not in pictures
    assert len(both["acc_semantic"]) == 2 and 0 <= both["acc_text"] <= 1 and len(pictures["acc_semantic"]) == 2
    weight = load_config(ROOT / "configs/asvr_mini.py").model.reconstruction[0].weight
    assert both["loss"] == pytest.approx(both["loss_text"] + weight * both["loss_semantic"])


def test_rates_count_real_tokens_and_images(model, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("asvr.engine.hooks.progress.time.perf_counter", lambda: now[0])
    state, hook = begin(model, tmp_path)
    state.train_loop.data_time = 0.5
    hook.flops = Flops()
    for _ in range(2):
        advance(state, [picture_batch(model, 3, 5), text_batch(model, 4)], lambda_hook := _Clock(now, 2.0), hook)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    tokens = (1 + 4 + 3) + (1 + 4 + 5) + (1 + 4)  # BOS, four visual tokens, words; the padding of a row is not counted
    assert lambda_hook.ticks and line["tokens_per_s"] == pytest.approx(2 * tokens / 4.0)
    assert line["images_per_s"] == pytest.approx(2 * 2 / 4.0)
    assert line["tflop_per_s"] == pytest.approx(2 * 2 * 3 / 4.0)
    assert line["mfu_percent"] == pytest.approx(100 * line["tflop_per_s"] / 6)
    assert line["data_time_percent"] == pytest.approx(100 * 1.0 / 4.0)
    assert line["eta_s"] == pytest.approx(8 * 2.0)


class Flops:
    """3 TFLOP a micro-batch, on a device that does 6 a second."""

    def __call__(self, window) -> float:
        return 3e12 * len(window)

    def peak(self, device) -> float:
        return 6e12


class _Clock:
    """Lets a step take ``seconds``."""

    def __init__(self, now: list, seconds: float):
        self.now, self.seconds, self.ticks = now, seconds, 0

    def after_train_iter(self, *args) -> None:
        self.now[0] += self.seconds
        self.ticks += 1


def test_loss_is_the_weighted_sum_and_a_mean_over_the_interval(model, tmp_path):
    state, hook = begin(model, tmp_path)
    logs = [advance(state, [picture_batch(model, *words)], hook) for words in ((3, 5), (4, 2))]
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    text, semantic = (torch.stack([log[name] for log in logs]).mean().item() for name in ("text", "semantic"))
    assert line["loss_text"] == pytest.approx(text) and line["loss_semantic"] == pytest.approx(semantic)
    assert line["loss"] == pytest.approx(text + TARGET["weight"] * semantic)
    assert line["acc_semantic"] == pytest.approx(
        torch.stack([log["correct_semantic"] for log in logs]).mean(0).tolist()
    )


def test_a_loss_is_averaged_over_the_steps_that_have_it(model, tmp_path):
    state, hook = begin(model, tmp_path)
    first = advance(state, [picture_batch(model, 3)], hook)
    second = advance(state, [text_batch(model, 3)], hook)
    assert "semantic" not in second
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["loss_semantic"] == pytest.approx(first["semantic"].item())
    both = (first["text"] + second["text"] + TARGET["weight"] * first["semantic"]).item()
    assert line["loss"] == pytest.approx(both / 2)


class _Reads(TorchDispatchMode):
    """Counts the operations that bring a number from the device to Python, or shape a tensor by its content.

    transformers does one a forward pass, where it looks for packed sequences in the positions.
    """

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "item")
    THEIRS = "find_packed_sequence_indices"

    def __init__(self):
        super().__init__()
        self.own, self.theirs = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.NAMES:
            stack = traceback.extract_stack()
            if any(frame.name == self.THEIRS for frame in stack):
                self.theirs += 1
            else:
                self.own.append((str(func), [f"{f.filename}:{f.lineno}" for f in stack if "asvr" in f.filename][-1:]))
        return func(*args, **(kwargs or {}))


def test_no_step_between_two_log_lines_waits_for_the_device(model, tmp_path, monkeypatch):
    lists = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: lists.append(1) or tolist(self))
    state, hook = begin(model, tmp_path, interval=3)
    windows = [[picture_batch(model, 3, 5), text_batch(model, 4)] for _ in range(3)]
    for batch in (batch for window in windows for batch in window):
        # cached, as the codes of a frozen encoder are: finding them is not the matter of the step
        if batch.num_images:
            batch.truth["semantic"] = dict(codes=torch.zeros(batch.num_images, 4, 2, dtype=torch.int64))
    advance(state, windows[0], hook)  # the first step makes the optimiser's state
    lists.clear()
    with _Reads() as reads:
        advance(state, windows[1], hook)
        assert reads.own == [] and lists == []
        assert reads.theirs <= len(windows[1])
        advance(state, windows[2], hook)
    assert lists, "the log line itself must have read the sums: otherwise this test counts nothing"


def test_refusals_are_counted_by_reason_and_named_once(model, tmp_path, spoken):
    state, hook = begin(model, tmp_path)
    file = tmp_path / "broken.png"
    file.write_bytes(b"no image")
    lost = Refusal("rows.json:7", "no answer", "rows.json, record 7: the last question has no answer")
    for _ in range(2):
        window = [
            collate(model)([item(), item(image=str(file), sample_id="rows.json:3")]),
            collate(model)([item(), lost, lost]),
        ]
        advance(state, window, hook)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    reason = window[0].refusals[0].reason
    assert line["refused"] == {reason: 2, "no answer": 4}
    messages = [record.getMessage() for record in spoken.records]
    assert sum("rows.json, record 7" in message for message in messages) == 1
    assert sum("rows.json:3" in message and str(file) in message for message in messages) == 1
    assert "4 (no answer)" in messages[-1]


def test_a_step_whose_samples_are_all_refused_changes_nothing_but_counts(model, tmp_path):
    state, hook = begin(model, tmp_path, interval=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    advance(state, [collate(model)([Refusal("rows.json:0", "no answer", "rows.json, record 0: no answer")])], hook)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["refused"] == {"no answer": 1} and line["loss"] == 0 and line["grad_norm"] == 0
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_lines_are_written_for_people_too(model, tmp_path, spoken):
    state, hook = begin(model, tmp_path)
    for _ in range(2):
        advance(state, [picture_batch(model, 3)], hook)
    (message,) = [record.getMessage() for record in spoken.records]
    parts = ("tune 2/10", "lr 1.00e-03", "loss ", "text ", "semantic ", "acc ", "tokens/s", "images/s", "GiB", "left")
    assert [part for part in parts if part not in message] == []


def test_a_resumed_stage_replaces_its_lines_behind_the_checkpoint(model, tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [("before", 90), ("tune", 2), ("tune", 4), ("tune", 6)]
    file.write_text("".join(json.dumps(dict(stage=s, step=n)) + "\n" for s, n in lines) + '{"stage": "tune", "st')
    hook = ProgressHook(file=str(file), stage="tune", interval=2)
    state = runner(model, build_optim_wrapper(model, OPTIM))
    state.iter = 4
    hook.before_train(state)
    assert [tuple(json.loads(line).values()) for line in file.read_text().splitlines()] == lines[:3]


def test_the_interval_must_be_positive():
    with pytest.raises(ValueError, match="runtime.log_interval=0"):
        ProgressHook(file="metrics.jsonl", stage="tune", interval=0)
