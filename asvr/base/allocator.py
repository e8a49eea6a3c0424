"""Memory that a training step frees and needs again.

On the CPU, glibc gives large blocks back to the system at once, and the system clears every page of the next one: a
step spends much of its time on that. Keeping freed memory, in large pages, costs nothing but a higher resident size
between steps; it changes nothing on other systems. On CUDA, torch's segments may grow: rows of changing lengths would
leave gaps between blocks that none of the next ones fits. To be called before torch is imported.
"""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc
NEVER = -1  # as a size_t: no free top of the heap is large enough to be given back
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # read by torch at its first allocation
SEGMENTS = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62), HUGE_PAGES: "1"}


def _wanted() -> bool:
    return os.environ.get("ASVR_KEEP_MEMORY") != "0" and platform.libc_ver()[0] == "glibc"


def keep_freed_memory() -> bool:
    """Whether it could be set for the CPU; ``ASVR_KEEP_MEMORY=0`` leaves the CPU's as it is, a ``PYTORCH_ALLOC_CONF``
    or ``PYTORCH_CUDA_ALLOC_CONF`` of the environment CUDA's."""
    os.environ.update(growing_segments())
    if not _wanted():
        return False
    os.environ.setdefault(HUGE_PAGES, "1")
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, NEVER))


def environment_to_keep() -> dict[str, str]:
    """The same for a process that is to be started: its additional environment."""
    return dict(ENVIRONMENT) if _wanted() else {}


def growing_segments() -> dict[str, str]:
    """The environment for CUDA's allocator, where it says nothing of it yet."""
    said = SEGMENTS.keys() | {"PYTORCH_CUDA_ALLOC_CONF"}
    return {} if said & os.environ.keys() else dict(SEGMENTS)
