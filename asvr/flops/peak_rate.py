"""Peak memory of the tensors in a training step.

On CUDA torch keeps the count. On the CPU torch's profiler reports every block that is allocated and freed. The resident
size of a process also has libraries, and memory that malloc cannot use again.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


def step_peak(step: Callable, device: torch.device, held: list[Tensor]) -> int:
    """The bytes of all tensors at the peak of ``step()``.

    held: tensors that exist before and after it, see `held_tensors`. On CUDA torch counts them anyway.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no messages about missing GPUs
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    blocks = (event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]")
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in held}
    taken = peak = sum(storage.nbytes() for storage in storages.values())
    for block in sorted(blocks, key=lambda event: event.start_ns()):
        taken += block.nbytes()
        peak = max(peak, taken)
    return peak


def held_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Weights, buffers and the optimiser's state. Gradients are freed between steps."""
    state = (value for values in optimizer.state.values() for value in values.values())
    return [*model.parameters(), *model.buffers(), *(value for value in state if isinstance(value, Tensor))]


def resident_bytes() -> int:
    """The largest resident size of this process since its start."""
    status = Path("/proc/self/status")  # getrusage also counts the process that started this one
    if status.is_file():
        return 1024 * int(status.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0])
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
