"""Activation checkpointing: which results a block keeps for the backward pass, and which it recomputes.

``none`` keeps everything. ``selective`` keeps the results of matrix products and attention. It recomputes norms,
activations and rotary embeddings, which are cheap. ``full`` keeps only a block's input and recomputes the whole block.
``auto`` recomputes whole blocks, but only as many as the device's memory requires, see `asvr.flops.recomputation`. A
model that is used without this plan treats it as ``full``.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

MODES = ("none", "selective", "full")
AUTO = "auto"
PRODUCTS = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_grouped_mm",  # an LLM's experts
    "aten::linear",
    "aten::convolution",
)

ATTENTION = ("attention", "attn", "flash")  # parts of names in torch, and in "xformers_flash::flash_fwd"


def is_product(op) -> bool:
    """Whether an operation is a matrix product or attention, in torch or in another library."""
    name = op.name().split(".")[0]
    return name in PRODUCTS or any(word in name for word in ATTENTION)


def _policy(ctx, op, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_product(op) else CheckpointPolicy.PREFER_RECOMPUTE


def settings(mode: str) -> dict:
    """Return the keyword arguments of ``torch.utils.checkpoint`` for a mode other than ``none``."""
    if mode == "selective":
        return dict(use_reentrant=False, context_fn=partial(create_selective_checkpoint_contexts, _policy))
    return dict(use_reentrant=False)


def check_mode(mode: str, key: str, *, auto: bool = False) -> str:
    """Return the mode. auto: whether the part can be planned. Raises ``ValueError`` for an unknown mode."""
    known = (*MODES, AUTO) if auto else MODES
    if mode not in known:
        raise ValueError(f"{key}={mode!r}: expected one of {', '.join(known)}")
    return mode


def run_block(block: nn.Module, x: torch.Tensor, mode: str) -> torch.Tensor:
    """Return ``block(x)``. In training it uses activation checkpointing."""
    if mode == "none" or not (block.training and torch.is_grad_enabled()):
        return block(x)
    return checkpoint(block, x, **settings(mode))


def run_in_chunks(function: Callable, inputs: tuple[torch.Tensor, ...], rows: int) -> torch.Tensor:
    """Apply ``function`` to chunks of ``rows`` rows. It must treat each row by itself.

    Only the inputs are kept. The backward pass recomputes one chunk at a time."""
    chunks = zip(*(tensor.split(rows) for tensor in inputs), strict=True)
    return torch.cat([checkpoint(function, *chunk, **settings("full")) for chunk in chunks])
