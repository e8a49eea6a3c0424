"""Activation checkpointing: what a block keeps for the backward pass, and what it computes again there.

``none`` keeps everything. ``selective`` keeps the results of matrix products and attention and computes norms,
activations and rotations again, which cost little. ``full`` keeps a block's input and computes all of it again.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

MODES = ("none", "selective", "full")
PRODUCTS = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_grouped_mm",  # an LLM's experts
    "aten::linear",
    "aten::convolution",
)

ATTENTION = ("attention", "attn", "flash")  # of torch, and "xformers_flash::flash_fwd"


def is_product(op) -> bool:
    """Whether an operation is a matrix product or attention, of torch or of another library."""
    name = op.name().split(".")[0]
    return name in PRODUCTS or any(word in name for word in ATTENTION)


def _policy(ctx, op, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_product(op) else CheckpointPolicy.PREFER_RECOMPUTE


def settings(mode: str) -> dict:
    """Keyword arguments of ``torch.utils.checkpoint`` for a mode other than ``none``."""
    if mode == "selective":
        return dict(use_reentrant=False, context_fn=partial(create_selective_checkpoint_contexts, _policy))
    return dict(use_reentrant=False)


def check_mode(mode: str, key: str) -> str:
    if mode not in MODES:
        raise ValueError(f"{key}={mode!r}: expected one of {', '.join(MODES)}")
    return mode


def run_block(block: nn.Module, x: torch.Tensor, mode: str) -> torch.Tensor:
    """``block(x)``, in training with activation checkpointing."""
    if mode == "none" or not (block.training and torch.is_grad_enabled()):
        return block(x)
    return checkpoint(block, x, **settings(mode))


def run_in_chunks(function: Callable, inputs: tuple[torch.Tensor, ...], rows: int) -> torch.Tensor:
    """``function`` of inputs whose rows have nothing to do with one another, so many at a time: for the backward pass
    inputs alone are kept, and one chunk at a time is computed again."""
    chunks = zip(*(tensor.split(rows) for tensor in inputs), strict=True)
    return torch.cat([checkpoint(function, *chunk, **settings("full")) for chunk in chunks])
