"""The precision that a model computes in, one rule for all commands: it answers in the one that it was trained in.
Codes and frozen features are computed in full float32, whatever a training step has switched on."""

from contextlib import contextmanager, nullcontext

import torch

PRECISIONS = {"float32": None, "bf16": torch.bfloat16}


def computing_in(precision: str | None, device: torch.device) -> torch.autocast:
    """A context. ``"bf16"`` is autocast; ``"float32"``, or None where nothing is known of the training, is none: each
    weight computes in its own dtype."""
    dtype = None if precision is None else PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def check_precision(value, where: str) -> str | None:
    """``value``, or ``ValueError``, naming ``where``, for one that is none."""
    if value is not None and (not isinstance(value, str) or value not in PRECISIONS):
        raise ValueError(f"{where}={value!r}: expected one of {', '.join(map(repr, PRECISIONS))}")
    return value


@contextmanager
def full_float32(device: torch.device):
    """No autocast and no TF32 inside: a code is an argmin, and rounding to fewer bits changes it.

    The matrix-product and convolution settings are process-wide; they are put back on the way out.
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
