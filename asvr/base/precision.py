"""The precision that a model computes in, one rule for all commands: it answers in the one that it was trained in."""

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
