"""The hardware and the versions of the machine, as runs and benchmarks record them."""

import platform
from importlib.metadata import version
from pathlib import Path

import torch

from asvr.base.version import asvr_version


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), device.type)


def machine(device: torch.device) -> dict:
    return dict(
        device=device_name(device),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=version("torch"),
        transformers=version("transformers"),
        asvr=asvr_version(),
    )
