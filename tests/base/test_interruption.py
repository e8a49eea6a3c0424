"""A run that is asked to end does so soon, with its exit code, and goes on as if nothing had happened."""

import importlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_helpers import ROOT, STEPS, TINY, read_metrics, tiny_command, tiny_env

from asvr.base import interruption
from asvr.base.interruption import EXIT_CODE, Interrupted, at_once, interruptible, postponed
from asvr.engine.hooks.progress import forget_after
from asvr.engine.run import run
from asvr.recipe.config import load_config

pytestmark = pytest.mark.usefixtures("tiny_run", "quick")  # in this order: the run is other modules' too
VALIDATION = {
    "validation": dict(dataset=dict(type="EasyVQA", split="train", max_images=1), interval=9),
    "stages.pretrain.validation": None,
    "stages.blind.validation": None,
}


def send(number=signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_a_signal_ends_a_run_where_it_stands(number, capfd):
    with pytest.raises(Interrupted) as end, interruptible():
        send(number)
        raise AssertionError("not reached")
    assert end.value.code == EXIT_CODE and end.value.received == number
    assert f"{number.name}: the run ends; a second signal ends it at once" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert str(pickle.loads(pickle.dumps(end.value))) == str(end.value)  # as it comes out of a study's process


def test_a_signal_waits_for_the_end_of_what_must_not_be_cut():
    done = []
    with pytest.raises(Interrupted), interruptible(), postponed():
        send()
        done.append("the step")
        with pytest.raises(Interrupted), at_once():
            done.append("not reached")
        done.append("the checkpoint")
    assert done == ["the step", "the checkpoint"]


def test_no_signal_no_interruption():
    with interruptible(), postponed(), at_once():
        pass
    assert interruption.received() is None


def ended_by(code: str) -> int:
    prelude = "import os, signal, time\nfrom asvr.base import interruption\n"
    return subprocess.run([sys.executable, "-c", prelude + code], cwd=ROOT, capture_output=True).returncode


def test_a_second_signal_ends_the_process_and_one_that_comes_with_the_first_does_not():
    code = (
        "with interruption.interruptible(), interruption.postponed():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep({})\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert ended_by(code.format(0)) == EXIT_CODE
    assert ended_by(code.format(1.1 * interruption.TOGETHER)) == -signal.SIGTERM


def test_a_worker_obeys_its_parent_alone():
    ready = multiprocessing.Event()

    def work() -> None:
        interruption.obey_parent_alone(0)
        ready.set()
        time.sleep(60)

    worker = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    worker.start()
    assert ready.wait(10)
    for number in interruption.SIGNALS:
        subprocess.run(["kill", f"-{number:d}", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0  # torch raises where it is another


# Whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tiny_run, tmp_path) -> Path:
    """A copy of the finished run whose last stage is to be trained again."""
    folder = Path(shutil.copytree(tiny_run, tmp_path / "copy"))
    shutil.rmtree(folder / "finetune")
    results = json.loads((folder / "results.json").read_text())
    del results["finetune"]
    (folder / "results.json").write_text(json.dumps(results))
    forget_after(folder / "metrics.jsonl", "finetune", 0)
    return folder


def again(work_dir: Path, changes: dict | None = None) -> dict:
    cfg = load_config(ROOT / "configs/asvr_mini.py", TINY | (changes or {}))
    return run(cfg, work_dir, only="finetune")


def same_end(work_dir: Path, other: Path) -> None:
    results = [json.loads((folder / "results.json").read_text())["finetune"] for folder in (work_dir, other)]
    assert all(results[0][key] == results[1][key] for key in ("accuracy", "losses", "codes", "made_with"))
    last = f"finetune/checkpoints/step_{STEPS['finetune']:08d}/model.safetensors"
    assert (work_dir / last).read_bytes() == (other / last).read_bytes()
    timeless = [
        [(line["stage"], line["step"], line["loss"], line["grad_norm"]) for line in read_metrics(folder)]
        for folder in (work_dir, other)
    ]
    assert timeless[0] == timeless[1]


def checkpoints(work_dir: Path) -> list[int]:
    return sorted(int(folder.name[5:]) for folder in (work_dir / "finetune" / "checkpoints").glob("step_*"))


def signalled_in(module: str, name: str, monkeypatch, at: int = 1) -> None:
    """Send a signal at the start of the ``at``-th call of a function."""
    owner = importlib.import_module(module)
    for part in name.split(".")[:-1]:
        owner = getattr(owner, part)
    name, calls = name.split(".")[-1], []
    original = getattr(owner, name)

    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            send()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def test_in_a_step_it_ends_behind_that_step_with_its_checkpoint(copy, tiny_run, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        signalled_in("asvr.models.vlm", "VLM.train_step", patch, at=24)
        again(copy, {"data.num_workers": 1})
    assert checkpoints(copy) == [14, 21, 24] and not (copy / "finetune" / "done.json").exists()
    assert "SIGTERM: stops after step 24 of 60" in (copy / "train.log").read_text()
    again(copy)
    same_end(copy, tiny_run)


def test_in_the_last_step_the_stage_is_trained_and_its_end_comes_next_time(copy, tiny_run, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        signalled_in("asvr.models.vlm", "VLM.train_step", patch, at=60)
        again(copy)
    assert checkpoints(copy)[-1] == 60 and not (copy / "finetune" / "done.json").exists()
    again(copy)
    same_end(copy, tiny_run)


@pytest.mark.parametrize(
    "module, name",
    [
        ("asvr.engine.run", "evaluate"),
        ("asvr.engine.run", "prepare"),
        ("asvr.engine.stages", "build_runner"),
    ],
)
def test_elsewhere_it_ends_at_once_and_goes_on(module, name, copy, tiny_run, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        signalled_in(module, name, patch)
        again(copy)
    assert list(json.loads((copy / "results.json").read_text())) == ["blind"]
    assert (copy / "finetune" / "done.json").exists() == (name == "evaluate")
    again(copy)
    same_end(copy, tiny_run)


def test_in_a_validation_it_ends_at_once_and_the_next_run_makes_the_validation(copy, tiny_run, tmp_path, monkeypatch):
    def validations(work_dir: Path) -> list:
        lines = [json.loads(line) for line in (work_dir / "validation.jsonl").read_text().splitlines()]
        return [(line["step"], line["accuracy"], line["losses"]) for line in lines]

    whole = Path(shutil.copytree(copy, tmp_path / "whole"))
    again(whole, VALIDATION)
    for at in (3, 1, 2):  # the third validation, then that one again, then the next
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            signalled_in("asvr.engine.runner", "evaluate", patch, at)
            again(copy, VALIDATION)
    assert checkpoints(copy)[-1] == 36 and [step for step, *_ in validations(copy)] == [9, 18, 27]
    again(copy, VALIDATION)
    assert validations(copy) == validations(whole)
    best = "finetune/best/model.safetensors"
    assert (copy / best).read_bytes() == (whole / best).read_bytes()
    same_end(copy, tiny_run)
    same_end(whole, tiny_run)


@pytest.mark.parametrize("to", ["all", "main"])
def test_the_command_ends_with_the_code(to, copy, tiny_run):
    """All processes get the signal, as clusters send it, and the DataLoader's worker must stay until the end; or the
    main one alone does, and has to end its worker."""
    command = [*tiny_command(copy), "data.num_workers=1", "schedule.steps=60", "--stage", "finetune"]
    with open(copy.with_suffix(".out"), "w") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=tiny_env(), stdout=out, stderr=out, start_new_session=True)
    while not any(line["stage"] == "finetune" and line["step"] == 10 for line in read_metrics(copy)):
        assert process.poll() is None, copy.with_suffix(".out").read_text()
        time.sleep(0.005)
    (os.killpg if to == "all" else os.kill)(process.pid, signal.SIGUSR1)
    assert process.wait(60) == EXIT_CODE, copy.with_suffix(".out").read_text()
    told = copy.with_suffix(".out").read_text()
    assert "SIGUSR1: the run was stopped; the same command resumes it (exit code 75)" in told
    assert f"stops after step {checkpoints(copy)[-1]} of 60" in told and "Traceback" not in told
    again(copy)
    same_end(copy, tiny_run)
