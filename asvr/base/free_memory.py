"""The memory that a process may use on its device."""

import os
from pathlib import Path

import torch

# The share that a plan may fill. On CUDA the rest is for the context, workspaces and fragmentation. On the CPU it is
# also for libraries, data loading and the file cache.
USABLE = dict(cuda=0.95, cpu=0.75)
MEMINFO = Path("/proc/meminfo")
# In a container the group's limit counts (version 2, then version 1 of Linux's control groups).
LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def usable_bytes(device: torch.device) -> float:
    """The bytes that this process may use in all, with those that it uses already.

    On the CPU, the processes of a machine share its memory. Raises ``ValueError`` if a system does not say how much
    memory it has.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return min(free + torch.cuda.memory_reserved(device), USABLE["cuda"] * total)
    share = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return USABLE["cpu"] * (_available() / share + _own())


def machine_bytes() -> int | None:
    """The memory of this machine's CPU, or of the container. None: the system does not say."""
    if not MEMINFO.is_file():
        return None
    found = [_in_meminfo("MemTotal")]
    for limit, _ in LIMITS:
        if Path(limit).is_file() and (text := Path(limit).read_text(encoding="utf-8").strip()).isdigit():
            found.append(int(text))
    return min(found)


def _in_meminfo(name: str) -> int:
    return 1024 * int(MEMINFO.read_text(encoding="utf-8").split(f"{name}:")[1].split()[0])


def _available() -> int:
    if not MEMINFO.is_file():
        raise ValueError("activation_checkpointing='auto' needs /proc/meminfo, as Linux has it: set 'full' or 'none'")
    found = [_in_meminfo("MemAvailable")]
    for limit, used in LIMITS:
        if Path(limit).is_file() and (text := Path(limit).read_text(encoding="utf-8").strip()).isdigit():
            found.append(max(0, int(text) - int(Path(used).read_text(encoding="utf-8"))))
    return min(found)


def _own() -> int:
    return 1024 * int(Path("/proc/self/status").read_text(encoding="utf-8").split("VmRSS:")[1].split()[0])
