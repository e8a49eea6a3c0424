"""Where a figure was measured: hardware and versions, as every result of a benchmark names them."""

import platform
from importlib.metadata import version
from pathlib import Path

import torch

from asvr import __version__

PACKAGES = ("torch", "transformers", "asvr")


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
        asvr=__version__,  # of a clone that is not installed too
    )


def in_words(found: dict) -> str:
    versions = ", ".join(f"{name} {found[name]}" for name in PACKAGES)
    return f"{found['device']}, {found['threads']} threads, Python {found['python']}, {versions}"
