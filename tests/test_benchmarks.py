"""The scripts in benchmarks/ run at tiny sizes and report what they measured."""

import json
import os
import runpy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from run_helpers import ROOT, call_tool, tiny_env

SIZES = {
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
    "model.reconstruction.0.tokenizer.codebook_size": 16,
    "model.reconstruction.0.head.width": 16,
    "model.reconstruction.0.head.num_heads": 2,
    "data.max_length": 320,
}
CONFIG = "configs/benchmarks/small_asvr.py"
TINY = [CONFIG, "--cfg-options", *(f"{key}={value}" for key, value in SIZES.items())]


@pytest.fixture
def run(tmp_path):
    def run(script: str, *args: str) -> tuple[dict, str]:
        out = tmp_path / "result"
        done = call_tool(f"benchmarks/{script}.py", *args, "--out", out)
        assert done.returncode == 0, done.stderr
        text = out.with_suffix(".md").read_text()
        assert text in done.stdout
        return json.loads(out.with_suffix(".json").read_text()), text

    return run


def test_throughput(run, tmp_path):
    other = ("--other-options", "optim.precision=bf16")
    cached = ("--features", "cached")
    result, text = run("throughput", *TINY, "--plain", "--samples", "2", "--rounds", "1", *cached, *other)
    assert list(result["sides"]) == ["small_asvr, cached codes", "small_asvr, plain (optim.precision=bf16)"]
    assert "cached codes, cached features, fused AdamW, float32" in text and "online codes, AdamW, bf16" in text
    assert all(side["peak_gib"] < side["resident_gib"] for side in result["sides"].values())
    assert f"torch {result['machine']['torch']}" in text and (tmp_path / "result.png").is_file()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--codes", "online"], "--features cached: needs --codes cached"),
        (["--cfg-options", "stages.finetune.train=[encoder,llm]"], "trains the encoder"),
    ],
)
def test_features_that_cannot_be_kept(options, message):
    done = call_tool("benchmarks/throughput.py", CONFIG, "--features", "cached", *options)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and message in done.stderr


def test_attention(run):
    result, text = run("attention", "--samples", "2", "--heads", "4", "--width", "8", "--rounds", "1")
    assert [(row["part"], row["kernel"], row["key_heads"]) for row in result["rows"]] == [
        ("tower", "sdpa", 5),
        ("depth", "sdpa", 4),
        ("depth", "products", 4),
        ("LLM", "padded", 4),
        ("LLM", "sdpa", 4),
        ("LLM", "padded", 1),
        ("LLM", "sdpa", 1),
    ]
    assert all(row["seconds"] > 0 for row in result["rows"]) and "| LLM | sdpa | 4 / 1 |" in text


def test_short_rows_are_attended_in_the_same_way():
    found = runpy.run_path(str(ROOT / "benchmarks/attention.py"))
    q, k, v = torch.randn(3, 5, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    for causal in (True, False):
        expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        for name in ("_products", "_sums"):
            torch.testing.assert_close(found[name](q, k, v, causal=causal), expected)


def test_dataloader(run):
    result, _ = run("dataloader", *TINY, "--workers", "0", "1", "--steps", "2")
    assert [row["workers"] for row in result["rows"]] == [0, 1]
    for row in result["rows"]:  # seven of eight samples have an image, in whatever order; packed rows have no padding
        assert 6 < row["images_per_s"] / row["steps_per_s"] <= 8 and row["real_tokens_percent"] == 100


def test_data_scale(run, monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "run", lambda command, **_: call_tool(*command[1:]))
    monkeypatch.setattr("asvr.data.file_index.KEPT_FROM", 0)
    folder = tmp_path / "records"
    folder.mkdir()
    monkeypatch.setattr("time.sleep", lambda seconds: os.utime(next(folder.glob("*/records.jsonl")), (0, 0)))
    result, text = run("data_scale", "--records", "200", "--reads", "50", "--folder", str(folder))
    assert result["first"]["records"] == 200 and result["later"]["reads_per_s"] > 0 and "200 records" in text
    assert result["index_mb"] > 0 and not list(folder.iterdir())


def test_checkpoint(run, tmp_path):
    result, text = run("checkpoint", *TINY, "--rounds", "1", "--steps", "1", "--folder", tmp_path)
    assert result["rounds"].keys() == {"at once", "meanwhile"} and "| meanwhile | " in text
    assert all(seconds > 0 for one in result["median"].values() for seconds in one.values())
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []  # nothing is left


def test_memory(run, monkeypatch):
    """At sizes where what is kept outweighs the transients of single operations, as in a finetune stage of any size.

    Tensors are counted, not the process: each measurement is made in this one, which saves four starts.
    """
    monkeypatch.setattr(subprocess, "run", lambda command, **_: call_tool(*command[1:]))
    sizes = SIZES | {
        "model.encoder.arch.hidden_size": 64,
        "model.encoder.arch.intermediate_size": 128,
        "model.llm.arch.hidden_size": 256,
        "model.llm.arch.intermediate_size": 512,
        "model.llm.arch.num_hidden_layers": 6,
        "model.llm.arch.vocab_size": 2000,
        "data.max_length": 400,
    }
    options = [f"{key}={value}" for key, value in sizes.items()]
    arguments = ("--rows", "2", "--tokens", "400", "--modes", "none", "full")
    result, text = run("memory", CONFIG, "--cfg-options", *options, *arguments)
    ratios = {(row["stage"], row["mode"]): row["measured"] / row["planned"] for row in result["rows"]}
    assert set(ratios) == {(stage, mode) for stage in ("pretrain", "finetune") for mode in ("none", "full")}
    assert all(0.85 < ratio < 1.15 for (stage, _), ratio in ratios.items() if stage == "finetune"), ratios
    assert all(0.75 < ratio < 1.3 for ratio in ratios.values()), ratios
    by_mode = {row["mode"]: row["measured"] for row in result["rows"] if row["stage"] == "finetune"}
    assert by_mode["full"] < by_mode["none"] and "measured / plan" in text


# The fuzzer with a process that ends at every image.
DEADLY = """
import runpy, sys
import asvr.data.images
asvr.data.images._check_size = lambda *_: sys.exit(7)
sys.path.insert(0, "benchmarks")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_fuzzer_counts_inputs_and_saves_what_fails(tmp_path):
    out, fuzzer = tmp_path / "out", ["benchmarks/fuzz_data.py", "--minutes", "1", "--save", str(tmp_path / "bad")]
    own = dict(cwd=ROOT, env=tiny_env() | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True)
    done = subprocess.run([sys.executable, *fuzzer, "--inputs", "300", "--out", str(out)], **own)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.with_suffix(".json").read_text())
    assert result["inputs"] == sum(result["outcomes"].values()) == 300 and not result["failures"]
    expected = {"picture: used", "picture: unreadable image", "lines: used", "lines: malformed"}
    assert expected <= result["outcomes"].keys()
    done = subprocess.run([sys.executable, "-c", DEADLY, *fuzzer, "--inputs", "6"], **own)
    assert done.returncode == 1 and "process ended with 7" in done.stdout and list((tmp_path / "bad").iterdir())
