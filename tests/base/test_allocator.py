"""Freed memory is kept: a large tensor that is made again faults its pages in once."""

import os
import subprocess
import sys

import pytest
from run_helpers import ROOT

from asvr.base.allocator import ENVIRONMENT, SEGMENTS, environment_to_keep, growing_segments, keep_freed_memory

SCRIPT = """
import sys
if sys.argv[1] == "kept":
    from asvr.base.allocator import keep_freed_memory
    assert keep_freed_memory()
import resource
import torch
torch.set_num_threads(1)
def make():
    block = torch.empty(2**31 + 2**28, dtype=torch.uint8)  # above the 2 GiB that fit glibc's own type of the setting
    block[: 2**27] = 1  # faults come of pages that are written to, and take their time
make()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
make()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str, **env: str) -> int:
    command = [sys.executable, "-c", SCRIPT, mode]
    own = {key: value for key, value in os.environ.items() if key not in ENVIRONMENT}
    done = subprocess.run(command, cwd=ROOT, env=own | env, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_page_is_faulted_in_once():
    plain, kept, by_environment = faults("plain"), faults("kept"), faults("plain", **environment_to_keep())
    assert plain > 30_000  # 128 MiB are 32,768 pages of 4 KiB
    assert kept < plain / 20 and by_environment < plain / 20


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(ASVR_KEEP_MEMORY="0"))
    assert keep_freed_memory() is False and environment_to_keep() == {}
    assert os.environ == dict(ASVR_KEEP_MEMORY="0") | SEGMENTS  # CUDA's allocator is another matter


def test_cudas_segments_grow_unless_the_environment_says_otherwise(monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert growing_segments() == SEGMENTS
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    assert growing_segments() == {}
