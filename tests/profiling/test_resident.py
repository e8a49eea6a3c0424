"""Peak memory counts from behind a tiny step."""

import subprocess
import sys

import pytest
from run_helpers import ROOT

SCRIPT = """
import torch
from asvr.profiling.resident import Peak
torch.set_num_threads(1)
peak = Peak(torch.device("cpu"))
before = peak.bytes()
torch.ones(2**26)  # 256 MiB
print(before, peak.bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_process_adds():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split()[-2:])
    assert before < 2**26 and 2**28 - 2**26 < after < 2**28 + 2**27
