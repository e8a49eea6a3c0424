"""The simulation of idle time: dealing by cost leaves less of it than dealing by number, and none below the bound."""

import json

from run_helpers import ROOT, call_tool


def test_idle_time_of_a_small_config(tmp_path):
    out = tmp_path / "balance"
    done = call_tool(
        ROOT / "benchmarks/balance.py", ROOT / "configs/benchmarks/small_asvr.py", "--steps", 3, "--out", out
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert [(row["processes"], row["samples"]) for row in rows][:2] == [(8, 128), (8, 256)]
    for row in rows:
        assert row["least_percent"] - 1e-9 <= row["cost_percent"] < row["number_percent"]
    assert rows[0]["cost_percent"] < 1
    assert "| 64 | 1024 |" in out.with_suffix(".md").read_text()
