"""A tiny run of ``configs/asvr_mini.py`` that several test files look at."""

import importlib.util
import os
from pathlib import Path
from unittest.mock import patch

import pytest
from run_helpers import call_tool, tiny_command, tiny_env

pytest_plugins = ["tokenizer_fixtures"]

if importlib.util.find_spec("hypothesis"):  # not on a machine that runs the tests marked gpu alone
    from hypothesis import settings

    # How long an example takes says more about what else the machine does.
    settings.register_profile("asvr", deadline=None)
    settings.load_profile("asvr")

# Bitwise comparisons of runs here with runs in processes of their own: as many threads in both.
os.environ["OMP_NUM_THREADS"] = tiny_env()["OMP_NUM_THREADS"]


@pytest.fixture(autouse=True)
def environment():
    """Variables that a command sets for itself and its processes (``HF_HUB_OFFLINE``) do not reach the next test."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """The work dir of an uninterrupted run. Copy it before you change anything in it."""
    work_dir = tmp_path_factory.mktemp("tiny") / "run"
    done = call_tool(*tiny_command(work_dir)[1:])
    assert done.returncode == 0, done.stderr
    return work_dir


@pytest.fixture(scope="module")
def quick():
    """Training runs of a module neither count FLOPs nor draw, which takes them longer than their few steps.

    `tiny_run` does both.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("asvr.engine.runner.step_flops", lambda stage: None)
        patched.setattr("asvr.engine.run.draw_summary", lambda work_dir, results: None)
        yield
