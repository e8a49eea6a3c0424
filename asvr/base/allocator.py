"""Allocator settings for memory that each training step frees and needs again.

On the CPU, glibc returns large blocks to the system at once, and the system clears every page of the next block. A step
spends much of its time on that. Here freed memory is kept, in large pages; the only cost is a larger resident size
between steps. Other systems do not change. On CUDA, torch's segments may grow; otherwise rows of changing lengths leave
gaps that no later block fits. Call these functions before torch is imported.
"""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc
NEVER = -1  # as a size_t it is the largest size: the heap is never trimmed
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # read by torch at its first allocation
SEGMENTS = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62), HUGE_PAGES: "1"}


def _wanted() -> bool:
    return os.environ.get("ASVR_KEEP_MEMORY") != "0" and platform.libc_ver()[0] == "glibc"


def keep_freed_memory() -> bool:
    """Apply the settings. Returns whether they could be set for the CPU.

    ``ASVR_KEEP_MEMORY=0`` leaves the CPU as it is. ``PYTORCH_ALLOC_CONF`` or ``PYTORCH_CUDA_ALLOC_CONF`` leaves CUDA as
    it is."""
    os.environ.update(growing_segments())
    if not _wanted():
        return False
    os.environ.setdefault(HUGE_PAGES, "1")
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, NEVER))


def environment_to_keep() -> dict[str, str]:
    """Environment variables with the CPU settings, for a new process."""
    return dict(ENVIRONMENT) if _wanted() else {}


def growing_segments() -> dict[str, str]:
    """Environment variables with the CUDA settings; empty if the user has set one."""
    names = SEGMENTS.keys() | {"PYTORCH_CUDA_ALLOC_CONF"}
    return {} if names & os.environ.keys() else dict(SEGMENTS)
