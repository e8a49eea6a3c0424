"""Where the time of a training step goes, by kind of operation, from torch's profiler.

On CUDA the time is that of kernels on the device, on the CPU that of operators without the operators inside them.
"""

import re

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from asvr.base.text import table
from asvr.profiling.worker import Worker

# The first kind whose pattern is found in the name of a kernel or operator.
KINDS = dict(
    attention=r"flash|attention|fmha|attn|sdpa",
    products=r"nvjet|gemm|cutlass|cublas|xmma|::(mm|addmm|bmm|baddbmm|linear|convolution|mkldnn|_scaled_mm|_grouped_mm)",
    optimiser=r"FusedOptimizer|_fused_adam|adamw",
    casts=r"fused__to_copy_\d+$|copy_kernel|::(_to_copy|copy_|to)\b|direct_copy",
    sums=r"Functor_add|::(add|add_|sum)\b",
    softmax=r"softmax|nll|cross_entropy",
)
OTHER = "other"
ROWS = 40


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), OTHER)


def profile_step(worker: Worker) -> list[dict]:
    """The time of each kernel or operator in one more step, the longest first: name, kind, seconds and count."""
    cuda = worker.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as recorded:
        read = worker.one()
        if cuda:
            torch.cuda.synchronize(worker.device)
    read()
    found = []
    for event in recorded.key_averages():
        on_device = event.device_type == DeviceType.CUDA
        if on_device != cuda or getattr(event, "is_user_annotation", False):
            continue
        seconds = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
        if seconds > 0:
            found.append(dict(name=event.key, kind=kind_of(event.key), seconds=seconds, count=event.count))
    return sorted(found, key=lambda row: -row["seconds"])


def shares(rows: list[dict]) -> dict[str, float]:
    """The percentage of each kind, the largest first."""
    total = sum(row["seconds"] for row in rows)
    found: dict[str, float] = {}
    for row in rows:
        found[row["kind"]] = found.get(row["kind"], 0.0) + 100 * row["seconds"] / total
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def markdown(rows: list[dict]) -> str:
    total = sum(row["seconds"] for row in rows)
    kinds = table(["kind", "share"], [[kind, f"{share:.1f} %"] for kind, share in shares(rows).items()])
    cells = [
        [row["name"].replace("|", "/")[:100], row["kind"], f"{1000 * row['seconds']:.1f}"]
        + [f"{100 * row['seconds'] / total:.1f} %", str(row["count"])]
        for row in rows[:ROWS]
    ]
    return kinds + "\n" + table(["kernel or operator", "kind", "ms", "share", "calls"], cells)
