"""Checkpoints: what they hold, that they are written whole, and that they are read strictly."""

import errno
import json
import logging
import os
import resource
import shutil
from collections import namedtuple
from contextlib import contextmanager

import pytest
import torch
from engine_helpers import LLAMA, SIGLIP, advance, collate, item, runner, tiny_model
from PIL import Image
from safetensors.torch import load_file

from asvr.engine import checkpoint, checkpoint_folder
from asvr.engine.hooks import CheckpointHook
from asvr.engine.optim import build_optim_wrapper
from asvr.engine.random_state import random_state, restore_random_states
from asvr.profiling.plan import FLOAT, Sizes
from asvr.recipe.optimizer_state import state_bytes

OPTIM = dict(lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0, clip_grad=1.0, precision="float32")
META = dict(stage="tune", step=3, config={"optim.lr": 1e-2}, frozen={})


def save(folder, model, state=None):
    meta = dict(META, frozen=checkpoint.frozen_fingerprints(model))
    checkpoint.save(folder, model=model, state=state or dict(random=[random_state()]), meta=meta)
    return folder


def parts(folder) -> set[str]:
    return {key.split(".")[0] for key in load_file(folder / "model.safetensors")}


def outputs(model) -> torch.Tensor:
    batch = collate(model)([item(image=Image.new("RGB", (8, 8), "red"))])
    with torch.no_grad():
        out = model.eval()(batch)
    return torch.stack([out["text"], out["semantic"]])


def test_holds_what_stands_in_no_other_file(tmp_path):
    model = tiny_model(train=["projector", "heads"])
    assert parts(save(tmp_path / "scratch", model)) == {"projector", "heads", "llm"}  # the LLM was initialised here
    model.llm.source = "a/llm"
    assert parts(save(tmp_path / "loaded", model)) == {"projector", "heads"}
    model.train_only(["projector", "heads", "llm"])
    assert parts(save(tmp_path / "trained", model)) == {"projector", "heads", "llm"}
    model.encoder.source = None
    assert parts(save(tmp_path / "own", model)) == {"projector", "heads", "llm", "encoder"}


def test_says_what_it_belongs_to(tmp_path):
    model = tiny_model()
    meta = checkpoint.read_meta(save(tmp_path / "step_00000003", model))
    assert {key: meta[key] for key in ("stage", "step", "config")} == {k: META[k] for k in ("stage", "step", "config")}
    encoder = meta["frozen"]["encoder"]
    assert (encoder["source"], encoder["fingerprint"]) == ("a/tower", model.encoder.fingerprint())
    assert meta["frozen"].keys() == {"encoder", "tokenizer.semantic"}
    assert meta["sha256"].keys() == {"model.safetensors", "state.pt"}


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_comes_back(tmp_path, tied):
    model = tiny_model(tied=tied)
    for parameter in model.llm.parameters():
        parameter.data += 0.1
    folder = save(tmp_path / "step_00000001", model)
    keys = [key for key in load_file(folder / "model.safetensors") if "embed_tokens" in key or "lm_head" in key]
    assert len(keys) == (1 if tied else 2)
    other = tiny_model(tied=tied)
    assert not torch.equal(outputs(other), outputs(model))
    checkpoint.load_weights(folder, other)
    assert torch.equal(outputs(other), outputs(model))
    if tied:
        assert other.llm.lm_head.weight.data_ptr() == other.llm.model.get_input_embeddings().weight.data_ptr()


def test_a_stage_that_trains_the_llm_starts_from_one_that_froze_it(tmp_path):
    before = tiny_model(train=["projector", "heads"])
    before.llm.source = "a/llm"
    before.projector.requires_grad_(True)
    next(before.projector.parameters()).data += 1
    folder = save(tmp_path / "pretrain", before)
    after = tiny_model()
    after.llm.source = "a/llm"
    checkpoint.load_weights(folder, after)
    assert torch.equal(outputs(after), outputs(before))
    assert after.llm.source == "a/llm" and "llm" in parts(save(tmp_path / "finetune", after))


def test_what_a_stage_before_trained_is_kept_when_it_is_frozen(tmp_path):
    folder = save(tmp_path / "one", tiny_model())
    later = tiny_model(train=["projector"])
    later.llm.source = "a/llm"  # built from the folder, then replaced by what was trained
    checkpoint.load_weights(folder, later)
    assert "llm" in parts(save(tmp_path / "two", later))


def test_another_models_checkpoint_is_refused(tmp_path, monkeypatch):
    folder = save(tmp_path / "step_00000001", tiny_model())
    with pytest.raises(ValueError, match=r"weights of heads do not fit this model; the first ones: \['semantic"):
        checkpoint.load_weights(folder, tiny_model(reconstruction=[]))
    without = save(tmp_path / "step_00000002", tiny_model(reconstruction=[]))
    with pytest.raises(ValueError, match=r"components missing in it: \['heads'\]"):
        checkpoint.load_weights(without, tiny_model())
    monkeypatch.setitem(LLAMA, "intermediate_size", 32)
    with pytest.raises(ValueError, match="weights of llm do not fit this model"):
        checkpoint.load_weights(folder, tiny_model())


def test_other_frozen_weights_are_refused(tmp_path):
    folder = save(tmp_path / "step_00000001", tiny_model())
    other = tiny_model()
    checkpoint.check_frozen(folder, other)
    next(other.encoder.parameters()).data += 1
    with pytest.raises(ValueError, match=r"frozen weights of encoder: a/tower \(\w{16}\), now a/tower.*; tokenizer"):
        checkpoint.check_frozen(folder, other)


def test_the_same_sizes_but_another_layer_count_is_refused(tmp_path, monkeypatch):
    model = tiny_model()
    model.encoder.source = None
    folder = save(tmp_path / "step_00000001", model)
    monkeypatch.setitem(SIGLIP, "num_hidden_layers", 3)
    with pytest.raises(ValueError, match="weights of encoder do not fit"):
        checkpoint.load_weights(folder, tiny_model())


class Killed(BaseException):
    """Nothing that a kill would not let run runs behind it."""


def kill_at(patch, moment: int, *, behind: bool) -> None:
    """Die at the ``moment``-th of the calls that change something on the disk, before it or behind it."""
    calls = []

    def deadly(function):
        def call(*args, **kwargs):
            calls.append(function)
            if len(calls) == moment and not behind:
                raise Killed
            result = function(*args, **kwargs)
            if len(calls) == moment:
                raise Killed
            return result

        return call

    for module, name in (
        (checkpoint, "save_file"),
        (torch, "save"),
        (checkpoint_folder, "flush"),
        (os, "replace"),
        (shutil, "rmtree"),
    ):
        patch.setattr(module, name, deadly(getattr(module, name)))


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("again", [False, True], ids=["a new step", "a step saved again"])
def test_a_kill_at_any_moment_loses_no_checkpoint(tmp_path, monkeypatch, behind, again):
    before, after = tiny_model(), tiny_model()
    next(after.llm.parameters()).data += 1
    target = tmp_path / f"step_{1 if again else 2:08d}"
    for moment in range(1, 100):
        for folder in tmp_path.iterdir():
            shutil.rmtree(folder)
        save(tmp_path / "step_00000001", before)
        with monkeypatch.context() as patch:
            kill_at(patch, moment, behind=behind)
            try:
                save(target, after)
                checkpoint.prune(tmp_path, 1)
                finished = True
            except Killed:
                finished = False
        checkpoint.clean(tmp_path)
        checkpoint.set_aside_damaged(tmp_path)
        names = {folder.name for folder in tmp_path.iterdir()}
        assert names <= {"step_00000001", "step_00000002"} and names
        loaded = tiny_model()
        checkpoint.load_weights(checkpoint.newest(tmp_path), loaded)
        weights = next(loaded.llm.parameters())
        is_new = torch.equal(weights, next(after.llm.parameters()))
        assert is_new or torch.equal(weights, next(before.llm.parameters()))
        if finished:
            assert is_new and moment > 5
            return
    pytest.fail("it never got to the end")


def flip(file) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda folder: flip(folder / "model.safetensors"), "model.safetensors is damaged (its SHA-256"),
        (lambda folder: flip(folder / "state.pt"), "state.pt is damaged (its SHA-256"),
        (lambda folder: (folder / "state.pt").unlink(), "state.pt is missing"),
        (lambda folder: (folder / "checkpoint.json").unlink(), "it has no checkpoint.json"),
        (lambda folder: (folder / "checkpoint.json").write_text('{"step": 2, "sha'), "checkpoint.json is damaged"),
        (lambda folder: (folder / "checkpoint.json").write_text("{}"), "it has no list of files"),
        (lambda folder: (folder / "checkpoint.json").write_bytes(b"\0" * 300), "checkpoint.json is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_set_aside(tmp_path, caplog, damage, reason):
    for step in (1, 2, 3):
        save(tmp_path / f"step_{step:08d}", tiny_model())
    damage(tmp_path / "step_00000003")
    damage(tmp_path / "step_00000002")
    with caplog.at_level(logging.WARNING, logger="asvr"):
        checkpoint.set_aside_damaged(tmp_path)
    assert checkpoint.newest(tmp_path).name == "step_00000001"
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for step, line in zip((3, 2), told, strict=True):
        assert f"step_{step:08d}" in line and reason in line
        assert line.endswith(f"is renamed to damaged_step_{step:08d}") and (tmp_path / line.split()[-1]).is_dir()


def test_without_a_whole_checkpoint_the_beginning_is_told_and_nothing_deleted(tmp_path, caplog):
    for _ in range(2):
        flip(save(tmp_path / "step_00000001", tiny_model()) / "state.pt")
        checkpoint.set_aside_damaged(tmp_path)
        assert checkpoint.newest(tmp_path) is None
        assert "no undamaged checkpoint is left" in caplog.messages[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged_step_00000001", "damaged_step_00000001.2"]


@contextmanager
def largest_file(size: int):
    """The system's own limit: a file that grows beyond it is an error of the write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt", "checkpoint.json"])
def test_no_room_for_a_file_is_told_in_one_line(tmp_path, file):
    good = save(tmp_path / "step_00000001", tiny_model())
    weights = (good / "model.safetensors").stat().st_size
    state = dict(random=[random_state()], values=torch.zeros(2 * weights if file == "state.pt" else 1))
    meta = dict(META, note="-" * 4 * weights) if file == "checkpoint.json" else META
    model = tiny_model()
    with largest_file(weights // 2 if file == "model.safetensors" else 2 * weights), pytest.raises(ValueError) as error:
        checkpoint.save(tmp_path / "step_00000002", model=model, state=state, meta=meta)
    told = str(error.value)
    assert f"step_00000002 cannot be written: {os.strerror(errno.EFBIG)}; it needs " in told
    assert " kB, " in told and " are free. The last good checkpoint is " in told and str(good) in told
    assert "\n" not in told
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    checkpoint.load_weights(good, tiny_model())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("module, name", [(checkpoint_folder, "flush"), (os, "replace"), (torch, "save")])
def test_a_full_disk_anywhere_in_a_save_is_told(tmp_path, monkeypatch, module, name, code):
    good = save(tmp_path / "step_00000001", tiny_model())

    def full(*args):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch, pytest.raises(ValueError, match=os.strerror(code) + "; it needs"):
        patch.setattr(module, name, full)
        save(tmp_path / "step_00000002", tiny_model())
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    checkpoint.load_weights(good, tiny_model())


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path, monkeypatch):
    save(tmp_path / "step_00000001", tiny_model())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(10_000))
    monkeypatch.setattr(checkpoint, "save_file", lambda *_: pytest.fail("it began to write"))
    with pytest.raises(ValueError, match=r"the disk is too small; it needs \S+ kB, 10 kB are free"):
        save(tmp_path / "step_00000002", tiny_model())


def test_the_newest_are_kept(tmp_path):
    model = tiny_model()
    state = runner(model, build_optim_wrapper(model, OPTIM), steps=7)
    hook = CheckpointHook(folder=str(tmp_path), interval=2, keep=2, meta=dict(META, frozen={}))
    batch = collate(model)([item()])
    for _ in range(7):
        advance(state, [batch], hook)
    hook.after_train(state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000006", "step_00000007"]  # and the last step's
    assert [checkpoint.read_meta(p)["step"] for p in sorted(tmp_path.iterdir())] == [6, 7]


def test_the_state_has_tensors_and_plain_values_only_and_comes_back(tmp_path):
    model = tiny_model()
    optim_wrapper = build_optim_wrapper(model, OPTIM)
    advance(runner(model, optim_wrapper), [collate(model)([item()])])
    folder = tmp_path / "step_00000001"
    state = dict(random=[random_state()])
    checkpoint.save(folder, model=model, optimizer=optim_wrapper.optimizer, state=state, meta=META)
    drawn = [torch.rand(3), torch.from_numpy(__import__("numpy").random.rand(3)), __import__("random").random()]
    fresh = tiny_model()
    other = build_optim_wrapper(fresh, OPTIM)
    restore_random_states(checkpoint.load_state(folder, fresh, other.optimizer)["random"], seed=0, step=1)
    again = [torch.rand(3), torch.from_numpy(__import__("numpy").random.rand(3)), __import__("random").random()]
    assert torch.equal(drawn[0], again[0]) and torch.equal(drawn[1], again[1]) and drawn[2] == again[2]
    own = optim_wrapper.optimizer.state_dict()["state"]
    for index, values in other.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, own[index][key]) for key, value in values.items())


def test_no_checkpoint_is_told(tmp_path):
    assert checkpoint.newest(tmp_path) is None and checkpoint.newest(tmp_path / "none") is None
    (tmp_path / "step_00000001").mkdir()
    assert checkpoint.newest(tmp_path) is None
    with pytest.raises(ValueError, match="step_00000001 is not a checkpoint: it has no checkpoint.json"):
        checkpoint.read_meta(tmp_path / "step_00000001")
    (tmp_path / "step_00000001" / "checkpoint.json").write_text(json.dumps(META)[:20])
    with pytest.raises(ValueError, match="checkpoint.json is damaged"):
        checkpoint.read_meta(tmp_path / "step_00000001")


@pytest.mark.parametrize("wrong", [dict(interval=0, keep=1), dict(interval=1, keep=0)])
def test_intervals_must_be_positive(wrong):
    with pytest.raises(ValueError, match="must be at least 1"):
        CheckpointHook(folder="x", meta={}, **wrong)


def test_a_plan_tells_the_bytes_of_a_checkpoint(tmp_path):
    model = tiny_model()
    optimizer = build_optim_wrapper(model, OPTIM).optimizer
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    meta = dict(META, frozen=checkpoint.frozen_fingerprints(model))
    checkpoint.save(tmp_path / "step_1", model=model, state={}, meta=meta, optimizer=optimizer)
    sizes = Sizes.of(model)
    weights = sum(tensor.nbytes for tensor in load_file(tmp_path / "step_1" / "model.safetensors").values())
    state = torch.load(tmp_path / "step_1" / "state.pt", weights_only=True)["optimizer"]["state"]
    moments = sum(tensor.nbytes for values in state.values() for tensor in values.values() if tensor.ndim)
    assert weights == sizes.saved * FLOAT and moments == state_bytes(model, OPTIM)
    assert sizes.saved == sizes.trained < sizes.blocks + sizes.root  # not the frozen encoder
