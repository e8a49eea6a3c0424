"""Data sets at the edge with every setting of how samples are read: each trains, or gives one clear line, soon. And
workers that have no room, die or are stuck."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from itertools import product
from pathlib import Path

import pytest
import torch
from edge_helpers import EDGES, SETTINGS, options, outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parallel_helpers import train
from process_helpers import in_processes
from run_helpers import ROOT, call_tool, tiny_env
from torch.utils.data import DataLoader, Dataset

from asvr.base import interruption
from asvr.base.interruption import Interrupted, interruptible, postponed, waiting
from asvr.data import workers
from asvr.data.batch import Batch
from asvr.data.workers import WorkerFailed, items_of, require_room_for_workers, shared_bytes
from asvr.recipe.config import load_config

TOLD = dict(  # the edges that cannot train, by (targets, on_error), and in which words they are told
    everything_refused=lambda targets, on_error: "missing",
    broken_pictures=lambda targets, on_error: "cannot be read",
    no_text=lambda targets, on_error: None if targets else "nothing to learn|no answer|no conversation",
    one_good=lambda targets, on_error: "cannot be read" if on_error == "raise" else None,
)
COMBINATIONS = [(edge, dict(zip(SETTINGS, v, strict=True))) for edge, *v in product(EDGES, *SETTINGS.values())]


def check(found: tuple[str, str], edge: str, chosen: dict) -> None:
    words = TOLD.get(edge, lambda *_: None)(chosen["targets"], chosen["on_error"])
    if edge in ("no_image", "one_text") and chosen["targets"] and chosen["cache"] is True:  # its tokenizer is fitted
        words = "need images: the dataset has none"
    expected = "told" if words else "trained"
    assert found[0] == expected, (edge, chosen, found)
    assert not words or any(word in found[1] for word in words.split("|")), found


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.sampled_from(COMBINATIONS))
def test_each_edge_trains_or_gives_one_line(edges, tmp_path, chosen):
    edge, how = chosen
    begin = time.monotonic()
    check(outcome(edges, tmp_path / str(time.time_ns()), edge, how), edge, how)
    assert time.monotonic() - begin < 40


@pytest.mark.slow
def test_every_combination_trains_or_gives_one_line(edges, tmp_path):
    for number, (edge, how) in enumerate(COMBINATIONS):
        check(outcome(edges, tmp_path / str(number), edge, how), edge, how)


@pytest.mark.parametrize("cache", [False, True, "codes"])
def test_data_without_an_image_train_with_and_without_a_cache(edges, tmp_path, cache):
    how = dict(how={}, num_workers=0, targets=True, on_error="raise")
    fitted = {"model.reconstruction": options(edges.parent, "plain", cache=False, **how)["model.reconstruction"]}
    for edge in ("no_image", "one_text"):
        found = outcome(edges, tmp_path / edge, edge, dict(how, cache=cache), fitted)
        assert found[0] == "trained", found


def test_a_tokenizer_is_not_fitted_without_a_picture(edges, tmp_path):
    own = options(edges.parent, "no_image", cache=True, how={}, num_workers=0, targets=True, on_error="raise")
    with pytest.raises(ValueError, match="need images: the dataset has none"):
        train(edges, tmp_path / "run", own)


def _one_of_two(rank: int, config: str, work_dir: str, edge: str, chosen: dict) -> list[str]:
    multiprocessing.current_process()._config["daemon"] = False  # it may have workers of its own
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2")
    return list(outcome(Path(config), Path(work_dir), edge, chosen, {"parallel": dict(type="DDP")}))


@pytest.mark.parametrize("number", range(3))
def test_two_processes_train_or_give_one_line(edges, tmp_path, number):
    edge, how = random.Random(number).choice(COMBINATIONS)
    found = in_processes(2, _one_of_two, str(edges), str(tmp_path / "run"), edge, how)
    told = [one for one in found if one[0] == "told"]  # one process may tell what ends the other
    for one in told or found:
        check(tuple(one), edge, how)


def test_a_step_of_refused_samples_is_told(edges, tmp_path):
    own = options(edges.parent, "one_good", cache=False, how={}, num_workers=0, targets=False, on_error="skip")
    train(edges, tmp_path / "run", own | {"data.global_batch": 2, "schedule.steps": 4})
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["stage"] == "finetune"]
    assert len(losses) == 4 and [loss == 0 for loss in losses] == [True, False, True, True]
    assert losses[1] > 1 and "nothing to learn: all samples were left out" in (tmp_path / "run/train.log").read_text()


# Workers ----------------------------------------------------------------------------------------------------


def test_what_a_step_takes_in_shared_memory_is_counted_in_pages():
    page = workers.mmap.PAGESIZE
    assert shared_bytes([dict(a=torch.zeros(3)), (torch.zeros(page // 4 + 1),), "x"]) == 3 * page
    assert shared_bytes(Batch.blank(packed=True)) == 4 * page  # of its tensors, four hold something


@pytest.mark.parametrize("edge", ["plain", "no_image"])
def test_a_run_whose_workers_have_no_room_ends_before_it_trains(edges, tmp_path, monkeypatch, edge):
    own = options(edges.parent, edge, cache=False, how={}, num_workers=2, targets=True, on_error="raise")
    own |= {"stages.pretrain.data": dict(num_workers=0)}  # the second stage's are told before the first
    monkeypatch.setattr(workers, "free_shared_memory", lambda: 20_000)
    words = "stage finetune: /dev/shm has 20 kB free, but optimisation steps of 6 samples need"
    with pytest.raises(ValueError, match=words) as e:
        train(edges, tmp_path / "run", own)
    assert "docker run --shm-size=" in str(e.value) and "num_workers (0 needs none)" in str(e.value)
    assert "\n" not in str(e.value) and not (tmp_path / "run/pretrain").exists()
    monkeypatch.setattr(workers, "free_shared_memory", lambda: 1 << 30)
    train(edges, tmp_path / "run", own)


def test_the_limit_of_open_files_is_raised_or_told(monkeypatch):
    limits = {"now": (100, 500)}
    monkeypatch.setattr(workers.resource, "getrlimit", lambda kind: limits["now"])
    monkeypatch.setattr(workers.resource, "setrlimit", lambda kind, own: limits.update(now=own))
    require_room_for_workers(torch.zeros(1), workers=1, ahead=1, what="steps", files=100)
    assert limits["now"] == (456, 500)
    with pytest.raises(ValueError, match=r"may open 500 files, .* about 656: raise the limit \(ulimit -n 656\)"):
        require_room_for_workers(torch.zeros(1), workers=1, ahead=1, what="steps", files=200)


SMALL = """
import os, sys, subprocess
sys.path[:0] = {paths!r}
from pathlib import Path
import edge_helpers as E
config, work_dir = Path(sys.argv[1]), Path(sys.argv[2])
own = dict(cache=False, how={{}}, num_workers=2, targets=False, on_error="raise")
print(E.outcome(config, work_dir, "plain", own))
"""


def test_one_mebibyte_of_shared_memory_is_told(edges, tmp_path):
    """As in a container: the check sees the memory that is really there."""
    paths = [str(ROOT / "tests" / "helpers")]
    script = tmp_path / "small.py"
    script.write_text(textwrap.dedent(SMALL.format(paths=paths)))
    mount = "mount -t tmpfs -o size=96k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this system gives no small shared memory to a process")
    command = f"{mount} && exec {sys.executable} {script} {edges} {tmp_path / 'run'}"
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, env=env, timeout=100)
    assert "('told', 'stage pretrain: /dev/shm has 98.3 kB free" in done.stdout, done.stdout + done.stderr


class Fails(Dataset):
    """Its second item, in a worker."""

    def __init__(self, fail):
        self.fail = fail

    def __len__(self):
        return 4

    def __getitem__(self, i):
        if i == 1 and torch.utils.data.get_worker_info() is not None:
            self.fail()
        return torch.tensor(i)


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _sleep():
    time.sleep(1000)


def _raise():
    raise RuntimeError("of the data's own")


def loader(fail, timeout=1.0) -> DataLoader:
    return DataLoader(Fails(fail), num_workers=1, timeout=timeout, multiprocessing_context="fork")


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (_die, r"a worker \(num_workers=1\) died, likely because the memory was full"),
        (_sleep, r"no worker \(num_workers=1\) gave a sample for 1 s"),
    ],
)
def test_a_worker_that_dies_or_is_stuck_is_told_in_one_line(fail, words):
    begin = time.monotonic()
    with pytest.raises(WorkerFailed, match=words) as error:
        list(items_of(loader(fail)))
    assert "\n" not in str(error.value) and time.monotonic() - begin < 30
    with pytest.raises(RuntimeError, match="of the data's own") as error:
        list(items_of(loader(_raise)))
    assert not isinstance(error.value, WorkerFailed)
    assert len(list(items_of(loader(lambda: None)))) == 4


def test_a_signal_ends_the_wait_for_a_stuck_worker(monkeypatch):
    monkeypatch.setattr(interruption, "PATIENCE", 0.3)
    begin = time.monotonic()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Interrupted), interruptible(), postponed():
        batches = iter(loader(_sleep, timeout=100))
        next(batches)
        with waiting():
            next(batches)
    assert time.monotonic() - begin < 20
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


# A run that waits for workers which are stuck, and gets a SIGTERM.
STUCK = """
import os, signal, sys, threading, time
from torch.utils.data import DataLoader, _utils
from asvr.commands.cli import run_tool
from asvr.data.workers import items_of
from asvr.base import interruption

class Stuck:
    def __len__(self):
        return 20

    def __getitem__(self, i):
        if i >= 4:
            {stuck}
        return i

interruption.PATIENCE = 0.3
_utils.MP_STATUS_CHECK_INTERVAL = 0.5  # seconds that torch gives each to end
kept = []  # as a traceback that is part of a circle keeps it: Python's end finds the processes

@interruption.interruptible()
def main():
    with interruption.postponed():
        loader = DataLoader(Stuck(), num_workers=4, timeout=100, worker_init_fn=interruption.obey_parent_alone)
        kept.append({items}(loader))
        next(kept[0])
        threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with interruption.waiting():
            list(kept[0])

run_tool(main)
"""


# It is stopped when it has handed over what it read before.
SLEEPS, STOPS = "time.sleep(1000)", "time.sleep(1); os.kill(os.getpid(), signal.SIGSTOP)"


@pytest.mark.parametrize(("items", "stuck"), [("iter", SLEEPS), ("items_of", SLEEPS), ("items_of", STOPS)])
def test_no_stuck_worker_has_the_last_word(items, stuck):
    code = STUCK.format(stuck=stuck, items=items)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=tiny_env(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 75 and "Traceback" not in done.stderr
    assert done.stderr.rstrip().endswith("the same command resumes it (exit code 75)")


@pytest.mark.parametrize("how", ["stuck", "signal"])
def test_a_run_with_a_stuck_worker_ends_behind_its_last_step_and_goes_on(edges, tmp_path, monkeypatch, how):
    from asvr.data import llava

    monkeypatch.setattr(interruption, "PATIENCE", 0.3)
    own = options(edges.parent, "plain", cache=False, how={}, num_workers=1, targets=False, on_error="raise")
    own |= {"data.worker_timeout": 4 if how == "stuck" else 100, "schedule.steps": 4, "runtime.checkpoint_interval": 50}
    whole, read = tmp_path / "whole", llava.LlavaDataset.record
    train(edges, whole, own)
    asked = multiprocessing.get_context("fork").Value("i", 0)

    def record(self, i):
        if torch.utils.data.get_worker_info() is not None:
            asked.value += 1
            if asked.value > 6 + 6 * 3:  # pretrain's two steps, one of them ahead, and two of finetune
                time.sleep(1000)
        return read(self, i)

    with monkeypatch.context() as patch:
        patch.setattr(llava.LlavaDataset, "record", record)
        if how == "signal":
            threading.Timer(8, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(WorkerFailed if how == "stuck" else Interrupted):
            train(edges, tmp_path / "run", own)
    kept = [folder.name for folder in (tmp_path / "run/finetune/checkpoints").iterdir()]
    assert len(kept) == 1 and kept[0] in ("step_00000001", "step_00000002")
    train(edges, tmp_path / "run", own)
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, tmp_path / "run")
    ]
    assert losses[0] == losses[1]


def test_the_time_that_a_worker_has_is_a_field_of_the_config(edges):
    cfg = load_config(edges, {"data.worker_timeout": 0})
    from asvr.recipe.validate import check_config

    with pytest.raises(ValueError, match=r"data.worker_timeout=0: expected a number above 0, or None"):
        check_config(cfg)
    assert call_tool("tools/train.py", "--help").returncode == 0
