"""A tiny run of ``configs/asvr_mini.py`` that several test files look at."""

import os
import subprocess
from pathlib import Path

import pytest
from run_helpers import ROOT, tiny_command, tiny_env

# Bitwise comparisons of runs here with runs in processes of their own: as many threads in both.
os.environ["OMP_NUM_THREADS"] = tiny_env()["OMP_NUM_THREADS"]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """The work dir of an uninterrupted run. Copy it before you change anything in it."""
    work_dir = tmp_path_factory.mktemp("tiny") / "run"
    done = subprocess.run(tiny_command(work_dir), cwd=ROOT, env=tiny_env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return work_dir
