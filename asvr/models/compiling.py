"""Regional ``torch.compile``: the norms and MLPs of an LLM's blocks, compiled once for all blocks, which are alike.

Attention stays out: its kernel is a library's, and it gets the lengths of packed samples, which change from batch to
batch and would have everything compiled again. So a block under full activation checkpointing is compiled as well.
"""

import logging

from torch import nn

logger = logging.getLogger("asvr")

ATTENTION = ("attn", "attention")  # what transformers calls it in a block


def compile_blocks(llm: nn.Module, backend: str = "inductor") -> int:
    """How many parts were given to the compiler; it runs when they are first used.

    Raises ``ValueError`` where the LLM has no ``blocks``, and with selective activation checkpointing, which chooses
    among single operations.
    """
    blocks = getattr(llm, "blocks", None)
    if not blocks:
        raise ValueError(f"runtime.compile: {type(llm).__name__} tells no `blocks`; leave it out")
    if getattr(llm, "activation_checkpointing", "none") == "selective":
        raise ValueError(
            "runtime.compile: llm.activation_checkpointing='selective' chooses among single operations, which compiled "
            "ones hide; use 'full' or 'none'"
        )
    parts = [part for block in blocks for name, part in block.named_children() if not name.endswith(ATTENTION)]
    for part in parts:
        part.compile(backend=backend, dynamic=True)
    logger.info("torch.compile: norms and MLPs of %d blocks", len(blocks))
    return len(parts)
