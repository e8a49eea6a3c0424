"""Checkpoints: what they hold, that they are written whole, and that they are read strictly."""

import json
import os

import pytest
import torch
from engine_helpers import LLAMA, SIGLIP, advance, collate, item, runner, tiny_model
from PIL import Image
from safetensors.torch import load_file

from asvr.engine import checkpoint
from asvr.engine.hooks import CheckpointHook
from asvr.engine.optim import build_optim_wrapper
from asvr.profiling.plan import ADAM_MOMENTS, FLOAT, Sizes

OPTIM = dict(lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0, clip_grad=1.0, precision="float32")
META = dict(stage="tune", step=3, config={"optim.lr": 1e-2}, frozen={})


def save(folder, model, state=None):
    meta = dict(META, frozen=checkpoint.frozen_fingerprints(model))
    checkpoint.save(folder, model=model, state=state or dict(random=checkpoint.random_state()), meta=meta)
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
    assert meta["frozen"]["encoder"] == dict(source="a/tower", fingerprint=model.encoder.fingerprint())
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
    with pytest.raises(ValueError, match=r"weights of heads do not fit this model, first: \['semantic"):
        checkpoint.load_weights(folder, tiny_model(reconstruction=[]))
    without = save(tmp_path / "step_00000002", tiny_model(reconstruction=[]))
    with pytest.raises(ValueError, match=r"components missing \['heads'\]"):
        checkpoint.load_weights(without, tiny_model())
    monkeypatch.setitem(LLAMA, "intermediate_size", 32)
    with pytest.raises(ValueError, match="weights of llm do not fit this model"):
        checkpoint.load_weights(folder, tiny_model())


def test_other_frozen_weights_are_refused(tmp_path):
    folder = save(tmp_path / "step_00000001", tiny_model())
    other = tiny_model()
    checkpoint.check_frozen(folder, other)
    next(other.encoder.parameters()).data += 1
    with pytest.raises(ValueError, match=r"frozen weights of encoder: a/tower \(\w{16}\), here a/tower.*; tokenizer"):
        checkpoint.check_frozen(folder, other)


def test_the_same_sizes_but_another_layer_count_is_refused(tmp_path, monkeypatch):
    model = tiny_model()
    model.encoder.source = None
    folder = save(tmp_path / "step_00000001", model)
    monkeypatch.setitem(SIGLIP, "num_hidden_layers", 3)
    with pytest.raises(ValueError, match="weights of encoder do not fit"):
        checkpoint.load_weights(folder, tiny_model())


def test_a_kill_at_any_time_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    model = tiny_model()
    save(tmp_path / "step_00000001", model)

    def killed(*args):
        raise KeyboardInterrupt

    for module, name in ((checkpoint, "save_file"), (torch, "save"), (checkpoint, "_flush"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, killed)
            with pytest.raises(KeyboardInterrupt):
                save(tmp_path / "step_00000002", model)
        assert checkpoint.newest(tmp_path).name == "step_00000001"
    save(tmp_path / "step_00000002", model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]
    with monkeypatch.context() as patch:  # a step that is saved again
        patch.setattr(torch, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path / "step_00000002", model)
    checkpoint.load_weights(checkpoint.newest(tmp_path), tiny_model())
    checkpoint.load_state(checkpoint.newest(tmp_path))


def test_the_newest_are_kept(tmp_path):
    model = tiny_model()
    state = runner(model, build_optim_wrapper(model, OPTIM), steps=7)
    hook = CheckpointHook(folder=str(tmp_path), interval=2, keep=2, meta=dict(META, frozen={}))
    batch = collate(model)([item()])
    for _ in range(7):
        advance(state, [batch], hook)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000006", "step_00000007"]  # and the last step's
    assert [checkpoint.read_meta(p)["step"] for p in sorted(tmp_path.iterdir())] == [6, 7]


def test_the_state_has_tensors_and_plain_values_only_and_comes_back(tmp_path):
    model = tiny_model()
    optim_wrapper = build_optim_wrapper(model, OPTIM)
    advance(runner(model, optim_wrapper), [collate(model)([item()])])
    state = dict(optimizer=optim_wrapper.optimizer.state_dict(), random=checkpoint.random_state())
    folder = save(tmp_path / "step_00000001", model, state)
    drawn = [torch.rand(3), torch.from_numpy(__import__("numpy").random.rand(3)), __import__("random").random()]
    loaded = torch.load(folder / "state.pt", weights_only=True)
    checkpoint.set_random_state(loaded["random"])
    again = [torch.rand(3), torch.from_numpy(__import__("numpy").random.rand(3)), __import__("random").random()]
    assert torch.equal(drawn[0], again[0]) and torch.equal(drawn[1], again[1]) and drawn[2] == again[2]
    other = build_optim_wrapper(tiny_model(), OPTIM)
    other.optimizer.load_state_dict(checkpoint.load_state(folder)["optimizer"])
    own = optim_wrapper.optimizer.state_dict()["state"]
    for index, values in other.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, own[index][key]) for key, value in values.items())


def test_no_checkpoint_is_told(tmp_path):
    assert checkpoint.newest(tmp_path) is None and checkpoint.newest(tmp_path / "none") is None
    (tmp_path / "step_00000001").mkdir()
    with pytest.raises(ValueError, match="step_00000001 is no checkpoint: it has no checkpoint.json"):
        checkpoint.read_meta(checkpoint.newest(tmp_path))
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
    folder = save(tmp_path / "step_1", model, dict(optimizer=optimizer.state_dict()))
    sizes = Sizes.of(model)
    weights = sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
    state = checkpoint.load_state(folder)["optimizer"]["state"]
    moments = sum(tensor.nbytes for values in state.values() for tensor in values.values() if tensor.ndim)
    assert weights == sizes.saved * FLOAT and moments == sizes.trained * ADAM_MOMENTS * FLOAT
    assert sizes.saved == sizes.trained < sizes.blocks + sizes.root  # not the frozen encoder
