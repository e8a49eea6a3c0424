"""Processes of a study: what they return, and what becomes of one that is killed."""

import os
import signal
import time

import pytest
from study_helpers import run, write_files

from asvr.base.interruption import Interrupted
from asvr.studies import run as engine_study
from asvr.studies.processes import Processes, how_it_died
from asvr.studies.results import Run
from asvr.studies.study_file import load_study


def work(kind: str) -> str | None:
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "exits":
        os._exit(3)
    if kind == "long":
        return "x" * 200_000  # more than a pipe holds
    if kind == "stopped":
        raise Interrupted(signal.SIGTERM)
    if kind == "endless":
        time.sleep(1000)
    if kind == "slow":
        time.sleep(3)
    return None if kind == "done" else kind


def one_that_may_be_killed(study: dict, run: Run, out) -> str | None:
    """As a run that the system kills, in a process of its own."""
    if (run.arm, run.seed) == ("none", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    run.work_dir.mkdir(parents=True)
    (run.work_dir / "metrics.jsonl").touch()
    return None


def test_each_process_has_its_own_end():
    ends = {}
    with Processes() as processes:
        for kind in ("done", "a problem", "killed", "exits", "long"):
            processes.start(kind, work, kind)
        while len(processes):
            ends |= processes.ended()
    assert ends["done"] is None and ends["a problem"] == "a problem" and len(ends["long"]) == 200_000
    assert ends["killed"].startswith("its process was killed by SIGKILL (the system does this when the memory is full")
    assert ends["exits"] == "its process ended with exit code 3"


def test_a_signal_to_a_run_ends_the_study():
    with Processes() as processes:
        processes.start("run", work, "stopped")
        with pytest.raises(Interrupted, match="SIGTERM"):
            processes.ended()


def test_a_signal_to_the_study_ends_its_runs():
    before = signal.getsignal(signal.SIGTERM)
    begun = time.monotonic()
    with pytest.raises(Interrupted, match="SIGTERM"), Processes() as processes:
        processes.start("run", work, "endless")
        os.kill(os.getpid(), signal.SIGTERM)
        processes.ended()
    assert time.monotonic() - begun < 100 and signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(Interrupted, match="SIGTERM"), Processes() as processes:
        os.kill(os.getpid(), signal.SIGTERM)  # with no run
        time.sleep(1)


def test_a_look_does_not_wait_for_the_end():
    with Processes() as processes:
        processes.start("run", work, "slow")
        assert processes.ended(0.1) == [] and len(processes) == 1
        assert processes.ended() == [("run", "slow")]


@pytest.mark.parametrize(("code", "words"), [(-15, "SIGTERM"), (-35, "signal 35"), (1, "exit code 1")])
def test_ends_in_words(code, words):
    assert words in how_it_died(code) and "memory" not in how_it_died(code)


def test_a_run_that_is_killed_does_not_end_the_others(tmp_path, monkeypatch):
    write_files(tmp_path)
    monkeypatch.setattr(engine_study, "_one", one_that_may_be_killed)
    done = run(tmp_path, "--jobs", "2", processes=Processes)
    assert done.returncode == 1 and "1 run(s) failed" in done.stderr
    assert "none, seed 0: its process was killed by SIGKILL" in done.stderr
    assert len(list((tmp_path / "out").glob("*/seed_*/metrics.jsonl"))) == 3


class Counting:
    """Keeps how many runs there are at each look. The first one trains from the second look on."""

    def __init__(self):
        self.running, self.looks = [], []

    def __len__(self):
        return len(self.running)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start(self, key, work, *args):
        self.running.append(key)

    def ended(self, timeout=None):
        self.looks.append((len(self.running), timeout))
        first = self.running[0]
        if timeout is not None and len(self.looks) == 2:  # now it trains
            first.work_dir.mkdir(parents=True)
            (first.work_dir / "metrics.jsonl").touch()
        return [] if timeout is not None else [(self.running.pop(0), None)]


def test_other_runs_begin_once_the_first_one_trains(tmp_path, monkeypatch):
    counting = Counting()
    monkeypatch.setattr(engine_study, "Processes", lambda: counting)
    study = load_study(write_files(tmp_path))
    assert engine_study.run_study(study, tmp_path / "out", jobs=3) == []
    assert counting.looks == [(1, 1.0), (1, 1.0), (3, None), (3, None), (2, None), (1, None)]
