"""Training goes on while a checkpoint is written, and what is written is the state of the step that it names."""

import copy
import threading

import pytest
import torch
from engine_helpers import advance, collate, item, runner, tiny_model
from PIL import Image

from asvr.engine import checkpoint
from asvr.engine.hooks import CheckpointHook
from asvr.engine.optim import build_optim_wrapper

OPTIM = dict(lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0, clip_grad=1.0, precision="float32")


class Training:
    def __init__(self, folder, *, steps=100, interval=2, keep=2, **model):
        self.model = tiny_model(**model)
        self.state = runner(self.model, build_optim_wrapper(self.model, OPTIM), steps=steps)
        self.hook = CheckpointHook(folder=str(folder), interval=interval, keep=keep, meta=dict(frozen={}))
        self.batch = collate(self.model)([item(image=Image.new("RGB", (8, 8), "red"))])

    def step(self) -> None:
        advance(self.state, [self.batch], self.hook)


@pytest.fixture
def slow_disk(monkeypatch):
    """Writing waits until the event is set."""
    go, write = threading.Event(), checkpoint.write

    def wait(*args):
        assert go.wait(30)
        write(*args)

    monkeypatch.setattr(checkpoint, "write", wait)
    return go


def tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [found for one in value.values() for found in tensors(one)] if isinstance(value, dict) else []


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_what_is_written_is_the_state_of_its_step(tmp_path, slow_disk, half):
    training = Training(tmp_path)
    if half:
        training.model.llm.model.to(torch.bfloat16)
        training.state.optim_wrapper = build_optim_wrapper(training.model, OPTIM)
    training.step()
    training.step()
    weights = copy.deepcopy(checkpoint.collect(training.model, None, {})["weights"])
    moments = copy.deepcopy(training.state.optim_wrapper.optimizer.state_dict()["state"])
    training.step()  # moves all weights and moments in place
    now = checkpoint.collect(training.model, None, {})["weights"]
    assert not any(torch.equal(value, weights[key]) for key, value in now.items() if key.startswith("llm"))
    assert not list(tmp_path.glob("step_*"))
    slow_disk.set()
    training.hook.after_train(training.state)
    loaded = Training(tmp_path)
    if half:
        loaded.model.llm.model.to(torch.bfloat16)
        loaded.state.optim_wrapper = build_optim_wrapper(loaded.model, OPTIM)
    checkpoint.load_weights(tmp_path / "step_00000002", loaded.model)
    optimizer = loaded.state.optim_wrapper.optimizer
    checkpoint.load_state(tmp_path / "step_00000002", loaded.model, optimizer)
    there = checkpoint.collect(loaded.model, None, {})["weights"]
    assert all(torch.equal(value, weights[key]) for key, value in there.items()) and there.keys() == weights.keys()
    pairs = zip(tensors(optimizer.state_dict()["state"]), tensors(moments), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_next_save_waits_for_the_last_and_the_end_for_all(tmp_path, slow_disk):
    training = Training(tmp_path, steps=4)
    for _ in range(3):
        training.step()
    waiting = threading.Thread(target=training.step)  # saves step 4
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    slow_disk.set()
    waiting.join()
    training.hook.after_train(training.state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000002", "step_00000004"]


def test_what_goes_wrong_stops_the_run_at_the_next_step(tmp_path, monkeypatch):
    training = Training(tmp_path, interval=10)
    for _ in range(9):
        training.step()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        training.step()
        training.hook.saver._running.exception()  # until the thread has ended
    with pytest.raises(ValueError, match="step_00000010 cannot be written: No space left on device; it needs"):
        training.step()
    assert not list(tmp_path.iterdir())


def test_the_end_of_a_stage_tells_what_went_wrong_in_its_last_save(tmp_path, monkeypatch):
    training = Training(tmp_path, steps=1)
    monkeypatch.setattr(torch, "save", lambda *_: 1 / 0)
    training.step()
    with pytest.raises(ZeroDivisionError):
        training.hook.after_train(training.state)


def test_without_a_copy_training_waits(tmp_path):
    training = Training(tmp_path)
    training.hook = CheckpointHook(folder=str(tmp_path), interval=2, keep=1, meta={}, asynchronous=False)
    training.step()
    training.step()
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000002"]
    training.hook.after_train(training.state)
