"""The throughput benchmark: its sides compute the same step, and its figures follow from what was measured."""

import io
import json
import time
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from data_helpers import FixedTokens
from mmengine.config import Config
from run_helpers import ROOT

from asvr.data.collate import Collate
from asvr.flops.step import peak_flops
from asvr.profiling import throughput
from asvr.profiling.machine import machine
from asvr.profiling.synthetic import SyntheticSamples
from asvr.profiling.throughput import OutOfMemory, Side, compare, markdown, ratios, write
from asvr.profiling.worker import Worker, guarded
from asvr.recipe.build import build_step_loader

TINY = {
    "model.encoder.arch.hidden_size": 16,
    "model.encoder.arch.intermediate_size": 24,
    "model.encoder.arch.num_hidden_layers": 8,
    "model.encoder.arch.num_attention_heads": 2,
    "model.encoder.arch.image_size": 56,
    "model.llm.arch.hidden_size": 32,
    "model.llm.arch.intermediate_size": 48,
    "model.llm.arch.num_hidden_layers": 2,
    "model.llm.arch.num_attention_heads": 2,
    "model.llm.arch.vocab_size": 64,
    "data.max_length": 320,
}
TARGET = {
    "model.reconstruction.0.tokenizer.codebook_size": 16,
    "model.reconstruction.0.head.width": 16,
    "model.reconstruction.0.head.num_heads": 2,
}
ASVR, LLAVA = (str(ROOT / f"configs/benchmarks/small_{name}.py") for name in ("asvr", "llava"))


def spec(config=ASVR, **changes) -> dict:
    options = TINY | (TARGET if config == ASVR else {})
    return dict(
        dict(config=config, cfg_options=options, stage=None, implementation="own", codes="cached", precision="float32")
        | dict(keep_memory=True),
        **changes,
    )


@cache
def steps(**changes) -> list[dict]:
    return Worker(spec(**changes) | dict(samples=8, steps=3, first=0)).run(3)["steps"]


@pytest.mark.parametrize(
    "changes", [dict(implementation="plain"), dict(codes="online"), dict(cached_features=True)], ids=str
)
def test_every_way_of_a_step_has_the_same_losses(changes):
    """Also after two optimisation steps: the released code's way computes the same gradients."""
    for own, other in zip(steps(**changes), steps(), strict=True):
        assert own["losses"] == pytest.approx(other["losses"], rel=1e-5)
        assert (own["tokens"], own["images"]) == (other["tokens"], other["images"]) and own["images"] == 7


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_step_of_transformers_has_the_same_losses(precision):
    options = TINY | {"optim.precision": precision, "stages.finetune.data.micro_batch": 4}
    given = dict(config=LLAVA, cfg_options=options, precision=precision)
    sides = [
        Worker(spec(**given, implementation=name) | dict(samples=8, steps=3, first=0)).run(3)["steps"]
        for name in ("own", "transformers")
    ]
    for own, other in zip(*sides, strict=True):
        assert own["losses"] == pytest.approx(other["losses"], rel=1e-5 if precision == "float32" else 2e-2)
        assert own["positions"] < other["positions"] and own["tokens"] == other["tokens"]


def test_transformers_llava_has_no_target():
    with pytest.raises(ValueError, match="--transformers: .* no reconstruction target: give a config of this kind"):
        Worker(spec(implementation="transformers") | dict(samples=2, steps=1, first=0))


def test_what_is_computed_is_counted():
    packed, plain, llava = steps(), steps(implementation="plain"), steps(config=LLAVA)
    assert packed[0]["positions"] == packed[0]["tokens"] < plain[0]["positions"]
    assert llava[0]["flops"] < packed[0]["flops"] < steps(codes="online")[0]["flops"]
    without_encoder = steps(cached_features=True)[0]["flops"]
    assert (
        without_encoder < packed[0]["flops"] and steps(config=LLAVA, cached_features=True)[0]["flops"] < without_encoder
    )
    assert set(packed[0]["seconds"]) == {"data", "forward", "backward", "optimizer"}
    assert set(llava[0]["losses"]) == {"text"}


def test_the_time_of_moving_averages_is_part_of_a_step(monkeypatch):
    worker = Worker(spec() | dict(samples=2, steps=1, first=0))
    (target,) = worker.model.targets
    monkeypatch.setattr(target, "after_step", lambda *_: time.sleep(0.3))
    (step,) = worker.run(1)["steps"]
    assert step["seconds"]["optimizer"] > 0.3 and 0 < step["processor_seconds"] < sum(step["seconds"].values()) * 2


def test_samples_are_like_llavas():
    samples = SyntheticSamples(num_image_tokens=729, max_length=2048, vocab_size=32000)
    items = [samples[i] for i in range(400)]
    assert sum(not item["images"] for item in items) == 50
    assert all(len(item["input_ids"]) + 728 * len(item["images"]) <= 2048 for item in items)
    texts = sorted(len(item["input_ids"]) for item in items)
    assert 130 < texts[200] < 170 and items[3]["input_ids"] == samples[3]["input_ids"]
    assert items[0]["images"][0].size == (640, 480)


@pytest.fixture(scope="module")
def result():
    sides = [Side("ours", spec()), Side("plain", spec(implementation="plain"))]
    return compare(sides, samples=4, rounds=2, steps=1)


def test_two_sides_in_turn(result, tmp_path):
    ours, plain = result["sides"].values()
    assert len(ours["all_seconds"]) == len(plain["all_seconds"]) == 2
    assert ours["peak_gib"] > 0.001 and ours["floor_seconds"] == pytest.approx(
        ours["tflop"] * 1e12 / result["flop_per_s"]["float32"], rel=0.5
    )
    found = ratios(result)["plain"]
    assert found["loss_difference"] < 1e-5
    assert ours["how"] == "micro-batches of 4, packed rows, sdpa, cached codes, fused AdamW, float32; freed memory kept"
    text = markdown(result)
    assert "| ours | " in text and f"plain / ours: {found['time']:.2f} x the time" in text
    write(result, tmp_path / "out" / "x")
    assert json.loads((tmp_path / "out" / "x.json").read_text())["samples"] == 4
    assert (tmp_path / "out" / "x.png").stat().st_size > 1000 and (tmp_path / "out" / "x.md").read_text() == text


class Alone(Side):
    """A worker, in this process, on a device that holds one at a time."""

    def start(self, samples):
        standing.append(self.name)
        self.process = Worker(dict(self.spec, samples=samples, first=len(self.steps)))
        self.info |= dict(machine=machine(self.process.device), kind="cuda")

    def ask(self, order):
        if "rate" in order:
            return self.process.rate(order["rate"])
        return self.process.peak() if "peak" in order else self.process.run(order["steps"])

    def stop(self):
        if self.process is not None:
            standing.remove(self.name)
        self.process = None


standing = []


def test_one_side_at_a_time_holds_an_accelerators_memory(monkeypatch):
    run, seen = Side.run, []

    def alone(side, steps, *, keep):
        assert standing == [side.name]
        run(side, steps, keep=keep)
        seen.append((side.name, keep))

    monkeypatch.setattr(Side, "run", alone)
    sides = [Alone("ours", spec()), Alone("plain", spec(implementation="plain"))]
    kept = []
    found = compare(sides, samples=2, rounds=2, steps=1, keep=kept.append)
    assert [result["rounds"] for result in kept] == [1, 2] and kept[-1] == found  # a run that is ended keeps the first
    assert [name for name, keep in seen if keep] == ["ours", "plain"] * 2
    first, second = ([step["tokens"] for step in side.steps] for side in sides)
    assert first == second and first[0] != first[1]  # the same samples, other ones every round
    assert ratios(found)["plain"]["loss_difference"] < 1e-5 and not standing


@pytest.mark.parametrize(("names", "of_turn"), [(["ours"], 2 + 3), (["ours", "again"], 2 + 1)])
def test_a_side_alone_is_one_process_and_has_samples_for_all_rounds(names, of_turn, monkeypatch):
    asked = []

    def start(side, samples):
        asked.append(side.spec["steps_of_turn"])
        raise OutOfMemory(side.name)

    monkeypatch.setattr(Side, "start", start)
    with pytest.raises(ValueError, match="ours: out of memory with one sample a step"):
        compare([Side(name, spec()) for name in names], samples=1, rounds=3, steps=1)
    assert asked == [of_turn]


def test_sides_whose_losses_differ_are_no_comparison():
    sides = [Side("a", spec()), Side("b", spec(implementation="plain"))]
    sides[0].info["first_losses"], sides[1].info["first_losses"] = dict(text=1.0), dict(text=1.001)
    with pytest.raises(ValueError, match=r"losses of the two sides differ by 1.0e-03, more than 1e-04"):
        throughput._require_same_losses(sides)
    sides[1].info["first_losses"] = dict(text=float("nan"))
    with pytest.raises(ValueError, match="differ by nan"):
        throughput._require_same_losses(sides)
    sides[1].spec = spec()  # two configs may have other losses: another LLM, say
    throughput._require_same_losses(sides)


@pytest.mark.parametrize(
    ("key", "value"), [("tap", 1), ("supervise", 3), ("loss", dict(type="CodeCrossEntropy", label_smoothing=0.1))]
)
def test_plain_refuses_an_objective_that_the_released_code_has_not(key, value):
    changed = spec(implementation="plain")
    changed["cfg_options"] = changed["cfg_options"] | {f"model.reconstruction.0.{key}": value}
    with pytest.raises(ValueError, match="--plain: target 'semantic' has (label_smoothing|tap|supervise)="):
        Worker(changed | dict(samples=1, steps=1, first=0))


def test_peaks_of_cards():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12 and peak_flops("NVIDIA T4") is None


def test_a_worker_tells_that_memory_ran_out():
    assert guarded(lambda: dict(numel=torch.empty(2**50).numel())) == dict(out_of_memory=True)
    with pytest.raises(RuntimeError, match="mat1"):
        guarded(lambda: dict(value=torch.zeros(2, 3) @ torch.zeros(2, 3)))


def test_less_samples_where_memory_runs_out(monkeypatch, capsys):
    tried = []

    def measure(sides, samples, rounds, steps, keep):
        tried.append(samples)
        if samples > 2:
            raise OutOfMemory("big")
        return samples

    monkeypatch.setattr(throughput, "_compare", measure)
    assert compare([], samples=8, rounds=1, steps=1) == 2 and tried == [8, 4, 2]
    assert "big: out of memory; trying 4 samples a step" in capsys.readouterr().err
    monkeypatch.setattr(throughput, "_compare", lambda *_: (_ for _ in ()).throw(OutOfMemory("big")))
    with pytest.raises(ValueError, match="big: out of memory with one sample a step"):
        compare([], samples=1, rounds=1, steps=1)


def test_what_a_worker_refuses_is_told():
    answer = guarded(lambda: Worker(spec(stage="pretran") | dict(samples=2, first=0)))
    process = SimpleNamespace(stdin=io.StringIO(), stdout=io.StringIO(json.dumps(answer) + "\n"))
    with pytest.raises(ValueError, match="ours: the config has no stage 'pretran'"):
        Side("ours", spec(), process=process).ask(dict(steps=1))


def test_samples_without_a_number_of_them_may_come_from_workers():
    """As on a GPU; on a CPU the steps that are measured have no workers."""
    data = dict(micro_batch=2, global_batch=2, num_workers=1)
    samples = SyntheticSamples(num_image_tokens=4, max_length=20, vocab_size=40, text_only=1.0)
    collate = Collate(layout=FixedTokens(4), views={}, pad_id=0, image_aspect="square")
    loader = build_step_loader(Config(dict(data=data, runtime=dict(seed=0))), samples, collate, [range(700, 702)])
    ((batch,),) = loader
    assert len(batch.sample_ids) == 2
