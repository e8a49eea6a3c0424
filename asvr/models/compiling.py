"""Regional ``torch.compile``: the blocks of the LLM and of the depth transformers, compiled once for all of a kind.

The attention kernel is a library's, and it gets the lengths of packed samples, which change from batch to batch: the
compiler stops in front of it and goes on behind it. Norms, rotations, activations and casts become few kernels, and
what a block keeps for the backward pass is the compiler's choice: results of matrix products, since everything else is
cheaper to compute again. Under ``full`` activation checkpointing the parts of the LLM's blocks are compiled one by one:
a checkpoint in a compiled region must not be interrupted.
"""

import logging
import sys
from collections import Counter
from contextlib import contextmanager

import torch
from torch import nn

from asvr.base import compat
from asvr.models.attention import keep_kernels_uncompiled

logger = logging.getLogger("asvr")


def compile_blocks(model: nn.Module, backend: str = "inductor") -> int:
    """How many parts of a `VLM` were given to the compiler; it runs when they are first used.

    An LLM, and a head that is to be compiled, name their ``blocks``. ``selective`` checkpointing is what the compiler
    does by itself. What was compiled before, of another stage's model, is forgotten: the compiler keeps few versions of
    a function, and leaves it uncompiled beyond them. Raises ``ValueError`` where the LLM names no blocks.
    """
    llm = model.llm
    if not getattr(llm, "blocks", None):
        raise ValueError(f"runtime.compile: {type(llm).__name__} tells no `blocks`; leave it out")
    mode = getattr(llm, "activation_checkpointing", "none")
    if mode == "selective":
        compat.disable_activation_checkpointing(llm.model)
    for head in model.heads.values():
        if getattr(head, "activation_checkpointing", "none") == "selective":
            head.activation_checkpointing = "none"
    torch._dynamo.reset()
    compat.keep_no_half_copies()
    keep_kernels_uncompiled(model)
    parts = [part for block in llm.blocks for part in (block.children() if mode == "full" else [block])]
    parts += [block for head in model.heads.values() for block in getattr(head, "blocks", [])]
    for part in parts:
        part.compile(backend=backend, dynamic=True)
    kinds = Counter(type(part).__name__ for part in parts)
    logger.info("torch.compile: %s", ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    return len(parts)


@contextmanager
def uncompiled():
    """Nothing is compiled inside, and compiled blocks run as they are: for evaluation, whose lengths, caches and modes
    would take all the versions of a function that the compiler keeps."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
