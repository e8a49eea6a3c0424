"""The short form of benchmarks/kills.py, which fails on any difference between a killed run and an untouched one."""

import json
import runpy
import shutil

from run_helpers import ROOT, TINY, call_tool


def test_a_run_that_is_killed_again_and_again_ends_as_an_untouched_one(tiny_run, tmp_path):
    options = [f"{key}={value}" for key, value in TINY.items()]
    out = tmp_path / "kills"
    arguments = ("--kills", 2, "--terms", 0.4, "--seed", 3, "--reference", tiny_run, "--out", out)
    done = call_tool("benchmarks/kills.py", "configs/asvr_mini.py", *arguments, "--cfg-options", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.with_suffix(".json").read_text())
    assert sum(result["SIGKILL"].values()) == 2 and result["processes"] > 2 and result["differences"] == 0
    assert "no difference" in out.with_suffix(".md").read_text()


def test_a_difference_is_found(tiny_run, tmp_path):
    """Otherwise the comparison would prove little."""
    kills = runpy.run_path(ROOT / "benchmarks/kills.py")
    copy = shutil.copytree(tiny_run, tmp_path / "copy")
    whole = kills["outcome"](tiny_run)
    assert kills["differences"](whole, kills["outcome"](copy)) == [] and len(whole) > 12
    weights = copy / "finetune/checkpoints/step_00000060/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    metrics = copy / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"loss": ', '"loss": 1', 1))
    expected = ["finetune/checkpoints/step_00000060/model.safetensors", "metrics.jsonl"]
    assert kills["differences"](whole, kills["outcome"](copy)) == expected
