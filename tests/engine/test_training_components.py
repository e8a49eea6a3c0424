"""Runs with other optimisers, schedules, hooks and averages: they go on from a checkpoint bit for bit."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import OPTIMIZERS
from parallel_helpers import launch, losses, make_config, train
from run_helpers import read_metrics
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import asvr
from asvr.registry import HOOKS

SHORT = {"evaluation": None, "stages.finetune.init": "scratch", "schedule.steps": 6}
LAST = "step_00000006"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_config(tmp_path_factory.mktemp("components"))


@pytest.fixture(scope="module")
def cache(config, tmp_path_factory) -> Path:
    """A work dir with what runs compute ahead."""
    folder = tmp_path_factory.mktemp("cache") / "run"
    train(config, folder, SHORT | {"schedule.steps": 1}, only="finetune")
    return folder


def trained(config, cache, work_dir: Path, options: dict) -> Path:
    shutil.copytree(cache, work_dir, ignore=shutil.ignore_patterns("finetune", "metrics.jsonl"))
    train(config, work_dir, copy.deepcopy(SHORT | options), only="finetune")  # MMEngine changes them
    return work_dir


def resumed(config, work_dir: Path, options: dict, *, step: int = 2) -> Path:
    """A copy of a finished run, as if it had been killed behind the checkpoint of ``step``, that went on."""
    copied = Path(shutil.copytree(work_dir, work_dir.with_name(f"{work_dir.name}_resumed")))
    (copied / "finetune" / "done.json").unlink()
    shutil.rmtree(copied / "finetune" / "ema", ignore_errors=True)
    for folder in (copied / "finetune" / "checkpoints").glob("step_*"):
        if int(folder.name[5:]) > step:
            shutil.rmtree(folder)
    train(config, copied, copy.deepcopy(SHORT | options), only="finetune")
    return copied


def weights(work_dir: Path, folder: str = f"checkpoints/{LAST}") -> bytes:
    return (work_dir / "finetune" / folder / "model.safetensors").read_bytes()


def state(work_dir: Path) -> dict:
    return torch.load(work_dir / "finetune" / "checkpoints" / LAST / "state.pt", weights_only=True)


def plain(value):
    """With the plain tensors that a tensor of another class is made of."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, torch.Tensor) and type(value) is not torch.Tensor:
        return [getattr(value, name) for name in value.__tensor_flatten__()[0]]
    return value


def curve(work_dir: Path) -> list[dict]:
    return [dict(line, lr=full["lr"]) for line, full in zip(losses(work_dir), read_metrics(work_dir), strict=True)]


def require_exact_resume(config, cache, work_dir: Path, options: dict) -> Path:
    """The uninterrupted run."""
    whole = trained(config, cache, work_dir, options)
    again = resumed(config, whole, options)
    assert "goes on from step 2 of 6" in (again / "train.log").read_text()
    assert weights(again) == weights(whole) != weights(whole, "checkpoints/step_00000002")
    own, other = state(again), state(whole)
    found, expected = own["optimizer"], other["optimizer"]
    torch.testing.assert_close(plain(found["state"]), plain(expected["state"]), rtol=0, atol=0)
    assert found["param_groups"] == expected["param_groups"]
    for found in (*own["schedulers"], *other["schedulers"]):
        found["_last_value"].pop()  # of settings that MMEngine adds to those of the groups, and that nothing reads
    assert own["schedulers"] == other["schedulers"]
    assert len(curve(whole)) == 6 and curve(again) == curve(whole)
    return whole


# Optimisers -----------------------------------------------------------------------------------------------

OWN = {
    "SGD": dict(momentum=0.9, nesterov=True),
    "NAdam": {},
    "Adagrad": {},
    "RMSprop": dict(centered=True),
    "TorchAdafactor": {},
    "Muon": dict(momentum=0.9, betas=(0.9, 0.98), adamw_lr_scale=0.5),
}


@pytest.mark.parametrize("name", OWN)
def test_an_optimiser_goes_on_bit_for_bit(config, cache, tmp_path, name):
    options = {"optim": dict(_delete_=True, type=name, lr=2e-3, clip_grad=1.0, precision="float32", **OWN[name])}
    require_exact_resume(config, cache, tmp_path / "run", options)


def test_muon_of_some_components_goes_on_bit_for_bit(config, cache, tmp_path):
    optim = dict(_delete_=True, type="Muon", lr=2e-3, clip_grad=1.0, precision="float32")
    require_exact_resume(config, cache, tmp_path / "run", {"optim": optim | dict(groups=dict(heads=dict(muon=False)))})


def test_groups_go_on_bit_for_bit_and_change_what_they_name(config, cache, tmp_path):
    plain = trained(config, cache, tmp_path / "plain", {})
    groups = dict(llm=dict(layer_decay=0.5), heads=dict(lr_scale=0.0, weight_decay=0.0))
    whole = require_exact_resume(config, cache, tmp_path / "run", {"optim.groups": groups})
    own, other = (
        load_file(folder / "finetune" / "checkpoints" / LAST / "model.safetensors") for folder in (whole, plain)
    )
    start = load_file(whole / "finetune" / "checkpoints" / "step_00000002" / "model.safetensors")
    heads = [key for key in own if key.startswith("heads.")]
    assert all(torch.equal(own[key], start[key]) for key in heads)
    assert not all(torch.equal(other[key], start[key]) for key in heads)


@OPTIMIZERS.register_module()
class SignDescent(torch.optim.Optimizer):
    """An optimiser of a user's own, with a state."""

    def __init__(self, params, lr: float, weight_decay: float = 0.0, memory: float = 0.5):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, memory=memory))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                    mean.lerp_(parameter.grad, group["memory"])
                    parameter.sub_(mean.sign(), alpha=group["lr"])


def test_a_users_own_optimiser_goes_on_bit_for_bit(config, cache, tmp_path):
    options = {"optim": dict(_delete_=True, type="SignDescent", lr=1e-3, memory=0.3, clip_grad=None, precision="bf16")}
    require_exact_resume(config, cache, tmp_path / "run", options)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("AdamW8bit", "OptimState8bit"), ("AdamW4bit", "OptimState4bit"), ("AdamWFp8", "OptimStateFp8")],
)
def test_torchaos_optimisers_of_few_bits_go_on_bit_for_bit(name, kind, config, cache, tmp_path, monkeypatch):
    pytest.importorskip("torchao.optim", reason="torchao is not installed")
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)  # of each shape: minutes on the CPU
    optim = dict(_delete_=True, type=f"torchao.optim.{name}", lr=2e-3, clip_grad=1.0, precision="float32")
    whole = require_exact_resume(config, cache, tmp_path / "run", {"optim": optim | dict(block_size=32)})
    kinds = {
        type(value).__name__ for moments in state(whole)["optimizer"]["state"].values() for value in moments.values()
    }
    assert kinds == {"Tensor", kind}


def test_torchaos_optimisers_are_refused_with_fsdp(config, tmp_path):
    pytest.importorskip("torchao.optim", reason="torchao is not installed")
    optim = dict(_delete_=True, type="torchao.optim.AdamW4bit", lr=2e-3, clip_grad=1.0, precision="float32")
    with pytest.raises(ValueError, match="'AdamW4bit': its states of few bits cannot be saved in parts: use parallel"):
        train(config, tmp_path / "run", SHORT | {"optim": optim, "parallel": dict(type="FSDP2")}, only="finetune")


# Schedules ------------------------------------------------------------------------------------------------

SCHEDULES = {
    "linear": dict(preset="linear", warmup_ratio=0.2),
    "constant": dict(preset="constant", warmup_ratio=0.2),
    "wsd": dict(preset="wsd", warmup_ratio=0.2, decay_ratio=0.5, min_lr_ratio=0.1),
    "composed": dict(
        param_schedulers=[
            dict(type="LinearLR", start_factor=0.1, end=0.5),
            dict(type="MultiStepLR", milestones=[0.5, 4], gamma=0.5),
            dict(type="CosineRestartLR", periods=[0.5, 0.5], restart_weights=[1.0, 0.5], eta_min=0.0),
        ]
    ),
    "one cycle": dict(param_schedulers=[dict(type="OneCycleLR", eta_max=1e-2, total_steps=1.0)]),
    "momentum": dict(param_schedulers=[dict(type="LinearMomentum", start_factor=0.5)]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_bit_for_bit(config, cache, tmp_path, name):
    options = {"schedule": dict(_delete_=True, steps=6, **SCHEDULES[name])}
    require_exact_resume(config, cache, tmp_path / "run", options)


# Hooks ----------------------------------------------------------------------------------------------------


@HOOKS.register_module()
class Counting(Hook):
    """Counts steps, and keeps what it was told."""

    def __init__(self, *, start: int = 0):
        self.count, self.told = start, []

    def state_dict(self) -> dict:
        return dict(count=self.count)

    def load_state_dict(self, state: dict) -> None:
        self.count = state["count"]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.count += 1

    def after_log(self, runner, kind: str, record: dict) -> None:
        self.told.append((kind, record["step"], self.count))


def test_a_hooks_state_is_saved_and_given_back(config, cache, tmp_path):
    options = {"custom_hooks": [dict(type="Counting", start=10), dict(type="Counting", priority="HIGH")]}
    whole = require_exact_resume(config, cache, tmp_path / "run", options)
    for folder in (whole, tmp_path / "run_resumed"):
        hooks = state(folder)["hooks"]
        assert sorted((hooks["Counting"]["count"], hooks["Counting.2"]["count"])) == [6, 16]
    plain = trained(config, cache, tmp_path / "plain", {})
    assert weights(plain) == weights(whole)


def test_a_hook_that_comes_or_goes_is_told(config, cache, tmp_path):
    hooks = {"custom_hooks": [dict(type="Counting")]}
    with_hook = trained(config, cache, tmp_path / "with", hooks)
    without = resumed(config, with_hook, {})
    assert "goes on without hook Counting; its state is dropped" in (without / "train.log").read_text()
    begun = resumed(config, without, hooks)
    assert "goes on with hook Counting; the checkpoint has no state of it" not in (begun / "train.log").read_text()


def test_a_hook_behind_the_checkpoint_is_refused_where_it_has_a_state(config, cache, tmp_path):
    options = {"custom_hooks": [dict(type="Counting", priority="LOWEST")]}
    with pytest.raises(
        ValueError, match="custom_hooks: Counting has a state and priority 'LOWEST', so it runs after the checkp"
    ):
        trained(config, cache, tmp_path / "run", options)


# The visualizer -------------------------------------------------------------------------------------------

EVALUATION = dict(limit=3, max_new_tokens=2, num_examples=0)


def with_questions(config: Path) -> dict:
    questions = dict(type="LlavaDataset", ann_file=str(config.with_name("questions.json")))
    return {
        "evaluation": dict(_delete_=True, dataset=questions, **EVALUATION),
        "validation": dict(dataset=questions, interval=3, limit=3, max_new_tokens=2),
    }


def local_lines(work_dir: Path) -> list[dict]:
    file = work_dir / "finetune" / "vis_data" / "scalars.json"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_local_file_gets_every_number_once(config, cache, tmp_path):
    options = with_questions(config) | {"visualizer": dict(vis_backends=[dict(type="LocalVisBackend")])}
    whole = trained(config, cache, tmp_path / "run", options)
    for folder in (whole, resumed(config, whole, options)):
        found = local_lines(folder)
        training = [line for line in found if "train/loss" in line]
        assert [line["step"] for line in training] == [1, 2, 3, 4, 5, 6]
        assert [line["train/loss"] for line in training] == [line["loss"] for line in read_metrics(folder)]
        expected = {
            "train/loss_text",
            "train/loss_semantic",
            "train/acc_semantic/0",
            "train/acc_semantic/1",
            "train/lr",
        }
        assert expected | {"train/grad_norm", "train/tokens_per_s"} <= training[0].keys()
        asked = [line for line in found if "validation/accuracy" in line]
        assert [line["step"] for line in asked] == [3, 6] and "validation/losses/text" in asked[0]
        (last,) = [line for line in found if "evaluation/accuracy" in line]
        assert last["step"] == 6 and last["evaluation/total"] == 3
    plain = trained(config, cache, tmp_path / "plain", with_questions(config))
    assert weights(plain) == weights(whole)


def test_tensorboard_shows_every_step_once(config, cache, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {"visualizer": dict(vis_backends=[dict(type="TensorboardVisBackend")])}
    whole = trained(config, cache, tmp_path / "run", options)
    for folder in (whole, resumed(config, whole, options)):
        events = EventAccumulator(str(folder / "finetune" / "vis_data")).Reload()
        points = events.Scalars("train/loss")
        assert [point.step for point in points] == [1, 2, 3, 4, 5, 6]
        assert [point.value for point in points] == pytest.approx([line["loss"] for line in read_metrics(folder)])


# Averages -------------------------------------------------------------------------------------------------


def test_averages_are_those_of_all_steps_and_go_on_bit_for_bit(config, cache, tmp_path):
    options = {"runtime.ema": dict(decay=0.6), "runtime.checkpoint_interval": 1, "runtime.keep_checkpoints": 9}
    whole = require_exact_resume(config, cache, tmp_path / "run", options)
    assert weights(tmp_path / "run_resumed", "ema") == weights(whole, "ema")
    plain = trained(config, cache, tmp_path / "plain", {})
    assert weights(plain) == weights(whole)
    steps = [
        load_file(whole / "finetune" / "checkpoints" / f"step_{step:08d}" / "model.safetensors") for step in range(1, 7)
    ]
    found = load_file(whole / "finetune" / "ema" / "model.safetensors")
    # The share of the weights that the stage starts from is what the others leave of them.
    for key, value in found.items():
        recent = sum(0.4 * 0.6 ** (6 - step) * own[key] for step, own in enumerate(steps[1:], 2))
        rest = (value - recent) / (1 - sum(0.4 * 0.6 ** (6 - step) for step in range(2, 7)))
        assert (rest - steps[0][key]).abs().max() < 0.01  # the start and the first step, which are near each other
    assert any(not torch.allclose(found[key], steps[-1][key]) for key in found)


def test_averages_of_bfloat16_weights_add_up_in_float32(config, cache, tmp_path):
    options = {"runtime.ema": dict(decay=0.999), "model.llm.dtype": "bfloat16", "optim.lr": 1e-5}
    whole = require_exact_resume(config, cache, tmp_path / "run", options)
    assert weights(tmp_path / "run_resumed", "ema") == weights(whole, "ema") != weights(whole)
    averages = state(whole)["hooks"]["AverageHook"]
    assert {value.dtype for value in averages.values()} == {torch.float32}
    assert any(value.bfloat16().float().ne(value).any() for key, value in averages.items() if key.startswith("llm."))


def test_averages_are_loaded_as_a_model(config, cache, tmp_path):
    lora = dict(type="Lora", layers=["llm.*.self_attn"], r=2)
    options = {"runtime.ema": dict(decay=0.6), "stages.finetune.model_transforms": [lora]}
    whole = trained(config, cache, tmp_path / "run", options)
    folder = whole / "finetune" / "ema"
    found, last = asvr.load(folder), asvr.load(whole)
    averages = load_file(folder / "model.safetensors")
    state = {key: value for part in ("projector", "heads") for key, value in _named(found.model, part).items()}
    assert state and all(torch.equal(value, averages[key]) for key, value in state.items())
    query = "model.model.layers.0.self_attn.q_proj"
    lora_a, lora_b = (averages[f"llm.{query}.lora_{name}.default.weight"] for name in "AB")
    base = AutoModelForCausalLM.from_pretrained(config.parent / "llm").get_parameter(f"{query[6:]}.weight")
    torch.testing.assert_close(found.model.llm.get_parameter(f"{query}.weight"), base + 8 * lora_b @ lora_a)
    again = asvr.load(found.save_pretrained(tmp_path / "saved")).model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in found.model.state_dict().items())
    assert any(not torch.equal(value, again[key]) for key, value in last.model.state_dict().items())
    with pytest.raises(ValueError, match="averages of stage 'finetune'; leave stage='pretrain' out"):
        asvr.load(folder, stage="pretrain")
    meta = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps(meta | dict(step=5)))
    with pytest.raises(ValueError, match="ema was made by an earlier run of stage 'finetune'"):
        asvr.load(folder)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="stage 'finetune' kept no averages of its weights: train it with runtime.ema"):
        asvr.load(folder)


def _named(model, part: str) -> dict[str, torch.Tensor]:
    return {f"{part}.{key}": value for key, value in getattr(model, part).state_dict().items()}


def test_averages_are_evaluated_where_that_is_asked_for(config, cache, tmp_path):
    options = with_questions(config) | {"runtime.ema": dict(decay=0.9, evaluate=True), "validation": None}
    whole = trained(config, cache, tmp_path / "run", options)
    results = json.loads((whole / "results.json").read_text())
    assert results["finetune"]["losses"]["text"] != results["finetune_ema"]["losses"]["text"]
    assert results["finetune"]["made_with"]["weights"] != results["finetune_ema"]["made_with"]["weights"]
    train(config, whole, copy.deepcopy(SHORT | options), only="finetune")
    assert json.loads((whole / "results.json").read_text()) == results


# Several processes ----------------------------------------------------------------------------------------


def test_two_processes_train_with_muon_and_averages_as_one_does(config, cache, tmp_path):
    """DDP and FSDP2; and a sharded run goes on in one process."""
    optim = dict(_delete_=True, type="Muon", lr=2e-3, clip_grad=1.0, precision="float32")
    options = SHORT | {"optim": optim, "runtime.ema": dict(decay=0.6)}
    one = trained(config, cache, tmp_path / "one", options)
    runs, near = [], dict(DDP=1e-4, FSDP2=1e-2)  # Muon's products of bfloat16 are added up in another order
    for kind in near:
        shutil.copytree(cache, tmp_path / kind, ignore=shutil.ignore_patterns("finetune", "metrics.jsonl"))
        own = options | {"stages.finetune.parallel": dict(type=kind)}
        runs.append(dict(config=str(config), work_dir=str(tmp_path / kind), options=own, only="finetune"))
    launch(tmp_path, runs, 2)
    for kind, rel in near.items():
        for own, other in zip(losses(tmp_path / kind), losses(one), strict=True):
            assert own["loss"] == pytest.approx(other["loss"], rel=rel), kind
    found = load_file(tmp_path / "DDP" / "finetune" / "ema" / "model.safetensors")
    for key, value in load_file(one / "finetune" / "ema" / "model.safetensors").items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=2e-3)
    again = resumed(config, tmp_path / "FSDP2", {"optim": optim, "runtime.ema": dict(decay=0.6)})
    assert "goes on from step 2 of 6" in (again / "train.log").read_text()
    assert losses(again)[-1]["loss"] == pytest.approx(losses(one)[-1]["loss"], rel=1e-2)
    own, other = load_file(again / "finetune/ema/model.safetensors"), load_file(one / "finetune/ema/model.safetensors")
    assert own.keys() == other.keys()
    torch.testing.assert_close(own, other, rtol=0, atol=1e-2)
    assert (tmp_path / "FSDP2" / "finetune" / "ema" / "weights").is_dir()
