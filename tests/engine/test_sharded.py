"""Checkpoints of sharded models: any number of processes goes on from them, and one process reads them as its own.

Every process trains on the same batch, so that any number of them computes the same mean of gradients.
"""

import logging
import resource
from unittest.mock import patch

import pytest
import torch
from engine_helpers import collate, item, runner, tiny_model, without_bias_of_keys
from PIL import Image
from process_helpers import in_processes
from safetensors import safe_open
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard

from asvr.engine import checkpoint
from asvr.engine.hooks import CheckpointHook
from asvr.engine.optim import build_optim_wrapper
from asvr.engine.random_state import restore_random_states
from asvr.engine.schedules import build_schedulers

OPTIM = dict(lr=1e-2, betas=(0.9, 0.999), weight_decay=0.1, clip_grad=100.0, precision="float32")
TOLERANCE = dict(rtol=1e-5, atol=1e-6)  # sums of gradients over processes come in another order


class Training:
    def __init__(self, *, sharded: bool, train=("projector", "heads", "llm"), tied=False):
        self.model = tiny_model(train, tied=tied)
        if sharded:
            for block in self.model.llm.blocks:
                fully_shard(block)
            fully_shard(self.model)
        self.state = runner(self.model, build_optim_wrapper(self.model, OPTIM), steps=100)
        self.state.param_schedulers = build_schedulers(self.state.optim_wrapper, dict(warmup_ratio=0.0), 10)
        self.batch = collate(self.model)([item(image=Image.new("RGB", (8, 8), "red"))])

    @property
    def optimizer(self):
        return self.state.optim_wrapper.optimizer

    def load(self, folder) -> None:
        checkpoint.load_weights(folder, self.model)
        state = checkpoint.load_state(folder, self.model, self.optimizer)
        for scheduler, values in zip(self.state.param_schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(values)
        restore_random_states(state["random"], seed=0, step=checkpoint.read_meta(folder)["step"])
        self.state.iter = checkpoint.read_meta(folder)["step"]

    def steps(self, number: int, *hooks) -> list[float]:
        return [self.step(*hooks) for _ in range(number)]

    def step(self, *hooks) -> float:
        logs = self.model.train_step([self.batch], self.state.optim_wrapper)
        for scheduler in self.state.param_schedulers:
            scheduler.step()
        self.state.iter += 1
        for hook in hooks:
            hook.after_train_iter(self.state, self.state.iter - 1)
        return (logs["text"] + logs["semantic"]).item()


def saving(folder, **kwargs) -> CheckpointHook:
    return CheckpointHook(folder=str(folder), keep=3, meta=dict(frozen={}), **dict(dict(interval=2), **kwargs))


def train(rank, sharded: bool, start, folder, tied=False) -> dict:
    """The losses of two steps, and of two more while the checkpoint of the first two is written; another at the end."""
    training, hook = Training(sharded=sharded, tied=tied), saving(folder, interval=100)
    if start is not None:
        training.load(start)
    first = training.steps(2)
    hook.save(training.state)
    second = training.steps(2, hook)
    hook.save(training.state)
    hook.after_train(training.state)
    return dict(first=first, second=second, random=torch.rand(2))


def whole_weights(folder) -> dict:
    model = tiny_model()
    checkpoint.load_weights(folder, model)
    return checkpoint.collect(model, None, {})["weights"]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_any_number_of_processes_goes_on_with_the_same_losses(tmp_path, tied):
    """2 -> 4, 2 -> 1, 4 -> 2, sharded -> one process and back."""
    step = "step_{:08d}".format
    (made, _) = in_processes(2, train, True, None, tmp_path / "two", tied)
    by_one = train(0, False, None, tmp_path / "one", tied)
    assert made["first"] + made["second"] == pytest.approx(by_one["first"] + by_one["second"], rel=1e-5)
    assert made["second"][-1] < made["first"][0]

    on_four = in_processes(4, train, True, tmp_path / "two" / step(2), tmp_path / "four", tied)[0]
    on_one = train(0, False, tmp_path / "two" / step(2), tmp_path / "one_again", tied)
    on_two = in_processes(2, train, True, tmp_path / "one" / step(2), tmp_path / "two_again", tied)[0]
    for found in (on_four, on_one, on_two):
        assert found["first"] == pytest.approx(made["second"], rel=1e-5)
    back = in_processes(2, train, True, tmp_path / "four" / step(4), tmp_path / "back", tied)[0]
    assert back["first"] == pytest.approx(on_four["second"], rel=1e-5)
    assert on_four["second"] == pytest.approx(on_one["second"], rel=1e-5)
    if not tied:
        one, many = whole_weights(tmp_path / "one_again" / step(4)), whole_weights(tmp_path / "four" / step(4))
        for key, value in one.items():
            kept = without_bias_of_keys(key, many[key]), without_bias_of_keys(key, value)
            torch.testing.assert_close(*kept, **TOLERANCE)


def test_the_same_processes_go_on_with_their_random_states(tmp_path):
    made = in_processes(2, train, True, None, tmp_path / "two")
    again = in_processes(2, go_on, tmp_path / "two" / "step_00000002")
    for own, other in zip(made, again, strict=True):
        assert own["second"] == other["losses"] and torch.equal(own["random"], other["random"])


def go_on(rank, folder) -> dict:
    training = Training(sharded=True)
    training.load(folder)
    return dict(losses=training.steps(2), random=torch.rand(2))


def test_other_processes_draw_new_random_states(tmp_path, caplog):
    in_processes(2, train, True, None, tmp_path / "two")
    training = Training(sharded=False)
    with caplog.at_level(logging.INFO, logger="asvr"):
        training.load(tmp_path / "two" / "step_00000002")
    drawn = torch.rand(3)
    assert "2 processes made the checkpoint, 1 go on: new random states are drawn from seed 0, rank and step 2" in (
        caplog.text
    )
    training.load(tmp_path / "two" / "step_00000002")
    assert torch.equal(torch.rand(3), drawn)
    ranks = in_processes(4, draw, tmp_path / "two" / "step_00000002")
    assert torch.equal(ranks[0], drawn) and len({tuple(values.tolist()) for values in ranks}) == 4


def draw(rank, folder) -> torch.Tensor:
    Training(sharded=True).load(folder)
    return torch.rand(3)


def test_holds_own_components_alone_as_safetensors_and_fingerprints_of_the_others(tmp_path):
    found = in_processes(2, describe, tmp_path)
    folder = tmp_path / "step_00000001"
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    shards = [f"shard-0000{n}-model-00001-of-00001.safetensors" for n in (1, 2)]
    parts = [f"{part}/{name}" for part in ("optimizer", "weights") for name in shards]
    assert files == sorted(["checkpoint.json", "state.pt", *parts])
    assert checkpoint.read_meta(folder)["sha256"].keys() == set(files) - {"checkpoint.json"}
    with safe_open(folder / "weights" / shards[0], "pt") as file:
        assert {key.split(".")[0] for key in file.keys()} == {"projector", "heads"}
    model = tiny_model(["projector", "heads"])
    model.llm.source = "a/llm"
    assert found[0] == found[1] == checkpoint.frozen_fingerprints(model)
    assert found[0].keys() == {"encoder", "llm", "tokenizer.semantic"}


def describe(rank, folder) -> dict:
    training = Training(sharded=True, train=("projector", "heads"))
    training.model.llm.source = "a/llm"
    training.step()
    saving(folder, asynchronous=False).save(training.state)
    return checkpoint.frozen_fingerprints(training.model)


def test_damage_is_found_by_whichever_process_reads_it(tmp_path):
    in_processes(2, train, True, None, tmp_path)
    for name in checkpoint.read_meta(tmp_path / "step_00000004")["sha256"]:
        file = tmp_path / "step_00000004" / name
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        told = in_processes(2, mend, tmp_path)
        assert f"{file} is damaged" in told[0] and told == [told[0], ""]
        assert checkpoint.newest(tmp_path).name == "step_00000002"
        with pytest.raises(ValueError, match="is damaged.*: delete"):
            Training(sharded=False).load(tmp_path / "damaged_step_00000004")
        (tmp_path / "damaged_step_00000004").rename(tmp_path / "step_00000004")
        file.write_bytes(content)


def mend(rank, folder) -> str:
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("asvr").addHandler(handler)
    checkpoint.set_aside_damaged(folder)
    return "\n".join(lines)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_no_room_in_one_process_ends_all_and_leaves_the_last_checkpoint(tmp_path, asynchronous):
    told = in_processes(2, run_out, tmp_path, asynchronous)
    assert all("step_00000003 cannot be written: File too large; it needs" in line for line in told)
    assert all(f"The last good checkpoint is {tmp_path / 'step_00000001'}" in line for line in told)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    Training(sharded=False).load(tmp_path / "step_00000001")


def test_a_checkpoint_whose_processes_end_meanwhile_gets_no_name(tmp_path):
    """With the group gone, each would else take itself for all of them, and write what it has as the whole."""
    told = in_processes(2, end_meanwhile, tmp_path)
    assert all("process group" in line for line in told), told
    assert not list(tmp_path.glob("step_*"))


def end_meanwhile(rank, folder) -> str:
    training, hashed = Training(sharded=True), checkpoint._hash
    training.step()

    def last(file):
        if dist.is_initialized():
            dist.destroy_process_group()
        return hashed(file)

    with patch("asvr.engine.checkpoint._hash", last):
        try:
            checkpoint.save(folder / "step_1", model=training.model, state={}, meta={}, optimizer=training.optimizer)
        except (ValueError, RuntimeError) as error:
            return f"{error} {error.__cause__}".lower()
    return "saved"


def run_out(rank, folder, asynchronous) -> str:
    training, hook = Training(sharded=True), saving(folder, asynchronous=asynchronous)
    training.step()
    hook.save(training.state)
    training.steps(2)
    hook.saver.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        hook.save(training.state)
        for _ in range(500):  # the error comes at the same step in both, so that neither waits for the other
            training.step(hook)
    except ValueError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    raise AssertionError("nothing was told")


def test_another_models_checkpoint_is_refused(tmp_path):
    in_processes(2, train, True, None, tmp_path)
    with pytest.raises(ValueError, match=r"weights of heads do not fit this model; the first ones: \['semantic"):
        checkpoint.load_weights(tmp_path / "step_00000002", tiny_model(reconstruction=[]))
    with pytest.raises(ValueError, match=r"weights of llm do not fit this model"):
        checkpoint.load_weights(tmp_path / "step_00000002", tiny_model(vocab_size=40))


def test_a_digest_stands_for_the_weights(tmp_path):
    for name, start in (("a", None), ("b", None), ("c", tmp_path / "a" / "step_00000002")):
        in_processes(2, train, True, start, tmp_path / name)
    a, b, c = (checkpoint.weights_digest(checkpoint.newest(tmp_path / name)) for name in "abc")
    assert a == b != c
