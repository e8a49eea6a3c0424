"""Peak memory is what the tensors of a step take."""

import subprocess
import sys

import torch
from run_helpers import ROOT
from torch import nn

from asvr.flops.peak_rate import held_tensors, step_peak

CPU = torch.device("cpu")


def test_of_what_a_step_takes_and_gives_back():
    def step():
        first = torch.zeros(2**20, dtype=torch.uint8)
        second = torch.zeros(2**21, dtype=torch.uint8)
        del first, second
        torch.zeros(2**20, dtype=torch.uint8)

    assert step_peak(step, CPU, []) == 3 * 2**20
    held = torch.zeros(100, 7)
    assert step_peak(step, CPU, [held, held.view(-1)]) == 3 * 2**20 + 2800


def test_what_stays_over_a_step():
    """Adam: a weight of 4 bytes and two moments; a gradient while the step runs; its result and work space besides."""
    model = nn.Linear(64, 256, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x = torch.randn(1, 64)

    def step():
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    held = held_tensors(model, optimizer)
    assert sum(tensor.nbytes for tensor in held) == 3 * 4 * 64 * 256 + 4  # the count of steps
    peak = step_peak(step, CPU, held)
    assert 4 * 4 * 64 * 256 < peak < 4.2 * 4 * 64 * 256
    assert step_peak(step, CPU, held) == peak


SCRIPT = """
from asvr.flops.peak_rate import resident_bytes
before = resident_bytes()
block = b"x" * 2**28
print(before, resident_bytes())
"""


def test_of_a_process():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split()[-2:])
    assert 2**28 - 2**24 < after - before < 2**28 + 2**24
