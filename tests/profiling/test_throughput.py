"""The throughput benchmark: its sides compute the same step, and its figures follow from what was measured."""

import json

import pytest
from run_helpers import ROOT

from asvr.profiling import throughput
from asvr.profiling.synthetic import SyntheticSamples
from asvr.profiling.throughput import OutOfMemory, Side, compare, markdown, ratios, write
from asvr.profiling.worker import Worker

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
        dict(config=config, cfg_options=options, stage=None, plain=False, codes="cached", precision="float32")
        | dict(keep_memory=True),
        **changes,
    )


def steps(**changes) -> list[dict]:
    return Worker(spec(**changes) | dict(samples=8, steps=3)).run(3)["steps"]


@pytest.fixture(scope="module")
def packed():
    return steps()


@pytest.mark.parametrize("changes", [dict(plain=True), dict(codes="online")], ids=str)
def test_every_way_of_a_step_has_the_same_losses(changes, packed):
    """Also after two optimisation steps: the released code's way computes the same gradients."""
    for own, other in zip(steps(**changes), packed, strict=True):
        assert own["losses"] == pytest.approx(other["losses"], rel=1e-5)
        assert (own["tokens"], own["images"]) == (other["tokens"], other["images"]) and own["images"] == 7


def test_what_is_computed_is_counted(packed):
    plain, llava = steps(plain=True), steps(config=LLAVA)
    assert packed[0]["positions"] == packed[0]["tokens"] < plain[0]["positions"]
    assert llava[0]["flops"] < packed[0]["flops"] < steps(codes="online")[0]["flops"]
    assert set(packed[0]["seconds"]) == {"data", "forward", "backward", "optimizer"}
    assert set(llava[0]["losses"]) == {"text"}


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
    sides = [Side("ours", spec()), Side("plain", spec(plain=True))]
    return compare(sides, samples=4, rounds=2, steps=1)


def test_two_sides_in_turn(result, tmp_path):
    ours, plain = result["sides"].values()
    assert len(ours["all_seconds"]) == len(plain["all_seconds"]) == 2
    assert ours["peak_gib"] > 0.001 and ours["floor_seconds"] == pytest.approx(
        ours["tflop"] * 1e12 / result["flop_per_s"]["float32"], rel=0.5
    )
    found = ratios(result)
    assert found["time"] == plain["seconds"] / ours["seconds"] and found["loss_difference"] < 1e-5
    text = markdown(result)
    assert "| ours | " in text and f"plain / ours: {found['time']:.2f} x the time" in text
    write(result, tmp_path / "out" / "x")
    assert json.loads((tmp_path / "out" / "x.json").read_text())["samples"] == 4
    assert (tmp_path / "out" / "x.png").stat().st_size > 1000 and (tmp_path / "out" / "x.md").read_text() == text


def test_less_samples_where_memory_runs_out(monkeypatch, capsys):
    tried = []

    def measure(sides, samples, rounds, steps):
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
    side = Side("ours", spec(stage="pretran"))
    with pytest.raises(ValueError, match="ours: the config has no stage 'pretran'"):
        side.start(2)
    side.stop()
