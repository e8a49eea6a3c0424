"""The precision of computation. All commands use the precision in which a model was trained.

Codes and frozen features are computed in full float32, whatever the training step uses.
"""

from contextlib import contextmanager, nullcontext

import torch

PRECISIONS = {"float32": None, "bf16": torch.bfloat16}


def computing_in(precision: str | None, device: torch.device) -> torch.autocast:
    """A context for a precision. ``"bf16"`` is autocast.

    ``"float32"`` is no autocast: each weight computes in its own dtype. None means the same, if the training is
    unknown."""
    dtype = None if precision is None else PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def check_precision(value, where: str) -> str | None:
    """Return ``value``. Raises ``ValueError`` if it is not a precision. where: its name in the message."""
    if value is not None and (not isinstance(value, str) or value not in PRECISIONS):
        raise ValueError(f"{where}={value!r}: expected one of {', '.join(map(repr, PRECISIONS))}")
    return value


@contextmanager
def full_float32(device: torch.device):
    """Inside the block there is no autocast and no TF32. A code is an argmin, and rounding to fewer bits changes it.

    The settings of matrix products and convolutions are process-wide; they are restored at the end.
    """
    matmul_precision = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    convolutions = cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    )
    has_autocast = torch.amp.is_autocast_available(device.type)  # not the meta device
    torch.set_float32_matmul_precision("highest")
    try:
        with convolutions, torch.autocast(device.type, enabled=False) if has_autocast else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(matmul_precision)
