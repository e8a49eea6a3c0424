"""Full float32 arithmetic for codes, whatever the surrounding training step has switched on."""

from contextlib import contextmanager, nullcontext

import torch


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
