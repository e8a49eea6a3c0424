"""The scripts in benchmarks/ run at tiny sizes and report what they measured."""

import json
import os
import runpy
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from unittest.mock import patch

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
    result, text = run("throughput", *TINY, "--plain", "--samples", "2", "--rounds", "1", *other)
    assert list(result["sides"]) == ["small_asvr, cached codes", "small_asvr, plain (optim.precision=bf16)"]
    assert "fused AdamW, float32" in text and "online codes, AdamW, bf16" in text
    assert all(side["peak_gib"] < side["resident_gib"] for side in result["sides"].values())
    assert f"torch {result['machine']['torch']}" in text and (tmp_path / "result.png").is_file()


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


# benchmarks/gpu.py ----------------------------------------------------------------------------------------------


def parts(out: Path) -> dict[str, dict]:
    return {part["part"]: part for part in map(json.loads, (out / "parts.jsonl").read_text().splitlines())}


def test_short_rows_are_attended_in_the_same_way():
    found = runpy.run_path(str(ROOT / "benchmarks/attention.py"))
    q, k, v = torch.randn(3, 5, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    for causal in (True, False):
        expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        for name in ("_products", "_sums"):
            torch.testing.assert_close(found[name](q, k, v, causal=causal), expected)


def test_the_gpu_script_without_a_gpu(tmp_path):
    """What needs CUDA is listed; the rest runs, and what it found is there."""
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--device", "cpu", "--seconds", "200", "--out", tmp_path]
    done = subprocess.run([*command, "--parts", "gpu_tests", "resume", "attention"], env=tiny_env(), cwd=tmp_path)
    found = parts(tmp_path)
    assert done.returncode == 0, (tmp_path / "output.log").read_text()[-4000:]
    assert list(found) == ["machine", "gpu_tests", "resume", "attention"]
    assert found["gpu_tests"]["state"] == "not run" and found["gpu_tests"]["reason"] == "these tests need CUDA"
    resumed = found["resume"]["figures"]
    assert 0 < resumed["killed_at_step"] < resumed["of_steps"] == 10
    assert resumed["largest_difference"] == 0 and resumed["lines"] > 10  # one thread: bit for bit
    assert found["attention"]["figures"]["LLM, padded, 4/4 heads"] == "1.00 x"
    report = (tmp_path / "report.md").read_text()
    assert "| gpu_tests | the tests marked gpu | not run: these tests need CUDA |  |" in report
    assert "| LLM | sdpa | 4 / 1 |" in report and {file.name for file in tmp_path.iterdir()} == KEPT


KEPT = {"parts.jsonl", "report.md", "output.log"}


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """The script's module, and a session of it without a machine; which parts it runs is the test's."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    def session(seconds: float = 60, **options):
        args = Namespace(seconds=seconds + gpu.RESERVE, out=tmp_path / "out", wheels=None, device="cpu", **options)
        args.out.mkdir(exist_ok=True)
        (tmp_path / "work").mkdir(exist_ok=True)
        return gpu.Session(args, tmp_path / "work")

    return gpu, session


def part(gpu, name: str, code: str, least: float = 0, most: float = 20, **options):
    return gpu.Part(name, "", ["-c", code], least, most, **options)


def test_a_part_that_fails_hangs_or_does_not_fit_is_told(gpu, tmp_path, monkeypatch):
    gpu, session = gpu
    own = session()
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS.format(str(tmp_path / 'pid'))!r}])"
    deaf = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('図', flush=True); {child}"
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    own.parts = [
        part(gpu, "good", "print('FIGURES {\"a\": 1}')", figures=gpu.own_figures),
        part(gpu, "bad", "raise SystemExit('a\\udc80 why')"),
        part(gpu, "odd", "print('FIGURES no JSON')", figures=gpu.own_figures),
        part(gpu, "hangs", deaf, most=2),
        part(gpu, "large", "", least=1000, most=2000),
        part(gpu, "refused", "", why_not="needs more memory"),
    ]
    own.run(own.parts[:3])  # together
    for one in own.parts[3:]:
        own.run([one])
    found = parts(own.out)
    assert {name: one["state"] for name, one in found.items()} == dict(
        good="passed", bad="failed", odd="passed", hangs="cut off", large="not run", refused="not run"
    )
    assert found["good"]["figures"] == dict(a=1) and found["bad"]["exit_code"] == 1
    assert "why" in found["bad"]["last_lines"][-1] and "JSONDecodeError" in found["odd"]["figures"]["not_read"]
    assert found["hangs"]["reason"] == "its limit of 2 s" and "図" in found["hangs"]["last_lines"]
    assert "s were left, it needs 1000 s or more" in found["large"]["reason"]
    assert found["refused"]["reason"] == "needs more memory"
    assert ended(int((tmp_path / "pid").read_text()))  # what the part has started ends with it
    report = (own.out / "report.md").read_text()
    assert all(f"## {name}" in report for name in found) and "| hangs |  | cut off: its limit of 2 s |" in report


def ended(pid: int) -> bool:
    """Perhaps nobody has asked for its exit code yet."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


SLEEPS = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); p = {!r}; " + (
    "open(p, 'w').write(str(os.getpid())); time.sleep(100)"
)


def test_time_is_left_for_what_comes_behind(gpu):
    gpu, session = gpu
    own = session(seconds=6)
    own.parts = [part(gpu, "long", "import time; time.sleep(60)", most=50), part(gpu, "later", "", least=3)]
    own.run(own.parts[:1], later=3)
    own.run(own.parts[1:])
    found = parts(own.out)
    assert found["long"]["state"] == "cut off" and found["long"]["seconds"] < 4
    assert found["later"]["state"] in ("passed", "not run")  # stopping the first takes a moment of it


def test_a_signal_ends_the_part_and_writes_the_report(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--device", "cpu", "--out", tmp_path, "--parts", "wrappers"]
    process = subprocess.Popen(command, env=tiny_env(), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "machine: begins" in line:
            break
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    found = parts(tmp_path)
    assert found["machine"]["reason"] == "ended by SIGTERM" and found["wrappers"]["state"] == "not run"
    assert "| machine | what this machine has | cut off: ended by SIGTERM |" in (tmp_path / "report.md").read_text()


TURNS = """
round 1/1, a, cached codes: 5.35 s
round 1/1, a, cached codes: 5.35 s, peak 121 GiB
round 1/1, b: 4.28 s
"""


def test_figures_are_read_from_what_was_printed(gpu):
    from gpu_figures import closing_line, turns

    cut = dict(time_ratio={"b / a, cached codes": 0.8}, peak_gib={"a, cached codes": 121, "b": None})
    assert turns(TURNS) == cut
    assert turns(f"{TURNS}out of memory; trying 8 samples a step\nround 1/1, a, cached codes: 1 s\n") == cut
    fewer = TURNS.replace("4.28", "10.7")
    assert turns(f"{TURNS}out of memory; trying 8 samples a step{fewer}")["time_ratio"] == {"b / a, cached codes": 2.0}
    assert turns("") == dict(time_ratio={}, peak_gib={})
    closing = "SKIPPED [1] x.py: no\n=== 3 passed, 1 skipped, 90 deselected in 12.34s ===\n"
    assert closing_line(closing) == dict(tests="3 passed, 1 skipped, 90 deselected in 12.34s")
    assert closing_line("2 failed, 3 passed in 61.00s (0:01:01)\n") == dict(
        tests="2 failed, 3 passed in 61.00s (0:01:01)"
    )


def test_the_parts_on_a_gpu_name_what_there_is(gpu):
    """That the commands parse is all that can be seen without one."""
    from gpu_list import parts_of

    card = dict(packages=dict(pytest="9", torchao="0.18"), problems={}, gpu="NVIDIA H100", gib=79)
    small, large = (
        {part.name: part for part in parts_of("cuda", machine, Path("w"))} for machine in (card, card | dict(gib=140))
    )
    steps = ["7b_finetune_step", "attention", "7b_pretrain_step", "7b_one_card", "float8_losses", "7b_profile"]
    steps += ["7b_auto_step", "7b_plain_step"]
    assert list(small) == ["gpu_tests", "resume", "wrappers", *steps]
    assert not any(part.why_not for part in [*small.values(), *large.values()])
    less = {part.name: part.why_not for part in parts_of("cuda", card | dict(gib=40), Path("w"))}
    assert less["7b_one_card"] == "the step takes about 70 GiB"
    for tests in small["gpu_tests"].command[-3:]:
        assert "mark.gpu" in (ROOT / tests).read_text()
    without = {part.name: part.why_not for part in parts_of("cuda", card | dict(packages=dict(pytest="9")), Path("w"))}
    needs_torchao = ["7b_one_card", "float8_losses"]
    assert [name for name, why in without.items() if why and "torchao" in why] == needs_torchao
    less = "model.llm.arch.num_hidden_layers=8"
    assert less in small["7b_finetune_step"].command and less not in large["7b_finetune_step"].command
    for part in large.values():
        if part.command[0].endswith(".py"):
            main = runpy.run_path(str(ROOT / part.command[0]))["parse_args"]
            with patch.object(sys, "argv", part.command):
                main()
    assert parts_of("cuda", dict(packages={}, problems={}), Path("w"))[0].why_not == "torch finds no CUDA device"
    broken = dict(packages={}, problems=dict(mmengine="ModuleNotFoundError: no"))
    why = "cannot be imported: mmengine (ModuleNotFoundError: no); put wheels into --wheels"
    assert {part.why_not for part in parts_of("cpu", broken, Path("w"))} == {why}
