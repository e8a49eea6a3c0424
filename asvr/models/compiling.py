"""Regional ``torch.compile`` of the blocks of the LLM and of the depth transformers, once for blocks of the same kind.

The attention kernel is not compiled: it comes from a library, and gets the lengths of packed samples, which change from
batch to batch. Norms, rotary embeddings, activations and casts are fused into few kernels. The compiler chooses what a
block keeps for the backward pass: the results of matrix products, since all else is cheap to recompute. The parts of a
block that is recomputed as a whole are compiled separately, because a checkpoint inside a compiled region must not be
interrupted.
"""

import logging
import sys
from collections import Counter
from contextlib import contextmanager

import torch
from torch import nn

from asvr.base import compat
from asvr.models.attention import keep_kernels_uncompiled
from asvr.models.checkpointing import AUTO

logger = logging.getLogger("asvr")


def compile_blocks(model: nn.Module, backend: str = "inductor") -> int:
    """Mark the blocks of a `VLM` for compilation, and return how many parts were marked.

    The compiler runs when they are first used. The LLM needs an attribute ``blocks``; heads may have one. ``selective``
    activation checkpointing is switched off, since the compiler does the same by itself. Compiled code of an earlier
    stage is dropped: the compiler keeps only a few versions of a function, and would not compile more. Raises
    ``ValueError`` if the LLM has no blocks.
    """
    llm = model.llm
    if not getattr(llm, "blocks", None):
        raise ValueError(f"runtime.compile: {type(llm).__name__} has no `blocks`; leave it out")
    mode = getattr(llm, "activation_checkpointing", "none")
    if mode == "selective":
        compat.disable_activation_checkpointing(llm.model)
    for head in model.heads.values():
        if getattr(head, "activation_checkpointing", "none") == "selective":
            head.activation_checkpointing = "none"
    torch._dynamo.reset()
    compat.keep_no_half_copies()
    keep_kernels_uncompiled(model)
    parts = [part for block in llm.blocks for part in (block.children() if _recomputed(block, mode) else [block])]
    parts += [block for head in model.heads.values() for block in getattr(head, "blocks", [])]
    for part in parts:
        part.compile(backend=backend, dynamic=True)
    kinds = Counter(type(part).__name__ for part in parts)
    logger.info("torch.compile: %s", ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    return len(parts)


def _recomputed(block: nn.Module, mode: str) -> bool:
    """Whether the backward pass computes the whole block again. mode: the LLM's."""
    return mode == "full" or (mode == AUTO and getattr(block, "gradient_checkpointing", True))


@contextmanager
def uncompiled():
    """Run without compilation inside a ``with`` block.

    Evaluation uses it: its lengths, caches and modes would use up the few versions of a function that the compiler
    keeps."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
