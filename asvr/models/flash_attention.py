"""Torch's switch between implementations of flash attention.

Torch brings FlashAttention-2. Other packages bring FlashAttention-3 and 4, and torch calls them instead after
``torch.nn.attention.activate_flash_attention_impl``. The switch holds for the whole process: for torch's
variable-length attention, and for scaled_dot_product_attention in half precision. It must not change between a forward
pass and its backward pass.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch.nn import attention
from torch.nn.attention import SDPBackend, sdpa_kernel

WITHOUT_FLASH = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class Implementation:
    """name: torch's name of it. module: a module of its package. capabilities: major numbers of the CUDA devices for
    which torch accepts it. install: how to get it."""

    name: str
    module: str
    capabilities: tuple[int, ...]
    install: str


IMPLEMENTATIONS = dict(
    varlen_fa3=Implementation(
        "FA3",
        "flash_attn_interface",
        (9,),
        "build FlashAttention-3 from the folder hopper of the repository Dao-AILab/flash-attention",
    ),
    varlen_fa4=Implementation("FA4", "flash_attn.cute", (9, 10), "pip install flash-attn-4"),
)


def active() -> str | None:
    """Torch's name of the active implementation. None: torch's own."""
    return attention.current_flash_attention_impl() if hasattr(attention, "current_flash_attention_impl") else None


def switch_to(name: str | None) -> None:
    """Switch to an implementation by torch's name of it. None: torch's own.

    Raises what the implementation's package raises if it does not work here."""
    if name == active():
        return
    if name is None:
        attention.restore_flash_attention_impl()
    else:
        attention.activate_flash_attention_impl(name)


@contextmanager
def switched(kernel: str) -> Iterator[None]:
    """Inside the block, the implementation of this attention kernel is active. Afterwards it is the one before."""
    before = active()
    try:
        switch_to(implementation_of(kernel))
        yield
    finally:
        switch_to(before)


def implementation_of(kernel: str) -> str | None:
    """Torch's name of the implementation that a kernel of `asvr.models.attention_kernels` needs. None: torch's own."""
    return IMPLEMENTATIONS[kernel].name if kernel in IMPLEMENTATIONS else None


def problem_of_implementation(kernel: str, device: torch.device) -> str | None:
    """Return why an implementation cannot be tried on this CUDA device. None: it can."""
    own = IMPLEMENTATIONS[kernel]
    known = attention.list_flash_attention_impls() if hasattr(attention, "restore_flash_attention_impl") else []
    if own.name not in known:
        return f"torch {torch.__version__} has no {own.name}, later versions do"
    major, minor = torch.cuda.get_device_capability(device)
    if major not in own.capabilities:
        needed = " or ".join(f"{number}.x" for number in own.capabilities)
        return f"needs a GPU of capability {needed}, this is {major}.{minor}"
    if not _is_installed(own.module):
        return f"not installed ({own.install})"
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # a package above it is missing, or cannot be imported
        return False


def without_flash(dropout: float):
    """A context in which scaled_dot_product_attention uses no flash attention, if this call needs that.

    FlashAttention-3 and 4 have no dropout, and torch's choice does not know it."""
    return sdpa_kernel(WITHOUT_FLASH) if dropout and active() is not None else nullcontext()
