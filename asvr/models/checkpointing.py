"""Activation checkpointing: which results a block keeps for the backward pass, and which it recomputes.

``none`` keeps everything. ``selective`` keeps the results of matrix products and attention. It recomputes norms,
activations and rotary embeddings, which are cheap. ``full`` keeps only a block's input and recomputes the whole block.
``auto`` recomputes whole blocks, but only as many as the device's memory requires, see `asvr.flops.recomputation`. A
model that is used without this plan treats it as ``full``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

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


class LinearBytes(NamedTuple):
    """Bytes as a linear function of the tokens of a micro-batch."""

    fixed: float
    per_token: float

    def __call__(self, tokens: int) -> float:
        return self.fixed + self.per_token * tokens


@dataclass(frozen=True, kw_only=True)
class Recomputation:
    """What a micro-batch may keep for its backward pass, by the number of its tokens (rows times their length).

    Activations of heads grow with the images. So a micro-batch with many images and short texts counts by its images.

    layers: blocks of an LLM that is ``auto``, or 0. heads: names of the heads that are ``auto``. room: bytes that may
    be used in all. tokens, crops: of the largest micro-batch; a whole image is one crop. least: the bytes needed if all
    of these are recomputed. llm_kept: if the LLM's blocks keep everything. all_kept: if the heads do too; None without
    ``heads``.
    """

    layers: int
    heads: tuple[str, ...]
    room: float
    tokens: int
    crops: int
    least: LinearBytes
    llm_kept: LinearBytes
    all_kept: LinearBytes | None

    def kept(self, tokens: int) -> tuple[int, bool]:
        """How many blocks of the LLM may keep their activations, and whether the heads may."""
        blocks, least = self.layers, self.least(tokens)
        if self.layers and (each := (self.llm_kept(tokens) - least) / self.layers) > 0:
            blocks = max(0, min(self.layers, int((self.room - least) // each)))
        keeps_heads = blocks == self.layers and self.all_kept is not None and self.all_kept(tokens) <= self.room
        return blocks, keeps_heads

    def apply(self, model: nn.Module, tokens: int, crops: int) -> None:
        """Set up a `VLM` for the next micro-batch."""
        if self.crops:
            tokens = max(tokens, -(-self.tokens * crops // self.crops))
        blocks, keeps_heads = self.kept(tokens)
        if self.layers:
            model.llm.keep_activations(blocks)
        for name in self.heads:
            model.heads[name].activation_checkpointing = "none" if keeps_heads else "full"
