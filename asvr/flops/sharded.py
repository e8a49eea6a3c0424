"""Sizes of a model that is sharded over several cards, see `asvr.engine.parallel.FSDP2`."""

from dataclasses import dataclass

import torch
from torch import nn

from asvr.models.hf import resolve_dtype
from asvr.models.trainable import kept_whole, trained_shares
from asvr.recipe.recipe import Stage

HALF, FLOAT = torch.bfloat16.itemsize, torch.float32.itemsize


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters of a stage's model.

    blocks: those of all LLM blocks; each block is gathered as one unit. root: all others, which are one unit, see
    `asvr.engine.parallel.FSDP2`. Parameters that each process keeps whole are in neither. saved: those in a checkpoint.
    Of a component that is trained in part, only the trained ones are saved.
    """

    blocks: int
    num_blocks: int
    root: int
    trained: int
    saved: int

    @staticmethod
    def of(model: nn.Module) -> "Sizes":
        whole = kept_whole(model)
        blocks = {id(p): p for block in model.llm.blocks for p in block.parameters() if p not in whole}
        everything = {id(p): p for p in model.parameters() if p not in whole}
        shares = trained_shares(model)
        return Sizes(
            blocks=_count(blocks.values()),
            num_blocks=len(model.llm.blocks),
            root=_count(p for i, p in everything.items() if i not in blocks),
            trained=_count(p for p in everything.values() if p.requires_grad),
            saved=sum(
                _count(
                    module.parameters() if shares[name] == 1 else [p for p in module.parameters() if p.requires_grad]
                )
                for name, module in model.components().items()
                if name in shares
            )
            + _count(model.teachers.parameters()),
        )


def _count(parameters) -> int:
    return sum(p.numel() for p in parameters)


def gathered_bytes(sizes: Sizes) -> float:
    """Bytes of gathered weights that a card holds besides its shard, with their gradients.

    They are the root unit in float32, and two blocks in half precision: the next one is fetched while one computes.
    """
    return 2 * (sizes.root * FLOAT + 2 * sizes.blocks / sizes.num_blocks * HALF)


def offloads(stage: Stage) -> bool:
    """Whether FSDP2 holds the states of a stage in the CPU's memory."""
    return stage.parallel is not None and bool(stage.parallel.get("cpu_offload"))


def copied_offloaded(stage: Stage, model: nn.Module, micro_batches: int) -> int:
    """Bytes of weights and gradients between all cards and the CPU's memory in an optimisation step of one copy.

    Weights are copied in their own dtype, before they are cast. Gradients are as large as their weights, which are
    float32 if they are trained. Blocks are fetched twice in each micro-batch, or once if they are not freed after the
    forward pass."""
    if not offloads(stage):
        return 0
    whole = in_full(stage, model)
    moved = {id(p): p for p in model.parameters() if p not in whole}
    inside = {id(p) for block in model.llm.blocks for p in block.parameters()}
    fetches = 2 if stage.parallel.get("reshard_after_forward", True) else 1
    returns = micro_batches if stage.parallel.get("reduce_each", True) else 1
    return sum(
        p.numel() * p.element_size() * (micro_batches * (fetches if key in inside else 1) + returns * p.requires_grad)
        for key, p in moved.items()
    )


def in_full(stage: Stage, model: nn.Module) -> set[nn.Parameter]:
    """The parameters that a card has in full even if the others are sharded, or are in the CPU's memory."""
    whole = kept_whole(model)
    if offloads(stage) and stage.parallel.get("frozen") == "replicate":
        whole |= {p for p in model.parameters() if not p.requires_grad}
    return whole


def gathered_offloaded(stage: Stage, model: nn.Module) -> int | None:
    """Bytes that a card holds of weights in use, with their gradients. None if the states are not in the CPU's memory.

    The root unit is in its own dtype and so are its gradients. Blocks are as in `gathered_bytes`, in the dtype in which
    they compute. Blocks that are not freed after the forward pass are all there, and so are gradients that wait for the
    last micro-batch."""
    if not offloads(stage):
        return None
    own, whole = stage.parallel, in_full(stage, model)
    itemsize = resolve_dtype(own.param_dtype).itemsize if own.get("param_dtype") else None
    blocks = [[p for p in block.parameters() if p not in whole] for block in model.llm.blocks]
    inside = {id(p) for block in blocks for p in block}
    root = [p for p in model.parameters() if p not in whole and id(p) not in inside]
    largest = max(sum(p.numel() * (itemsize or p.element_size()) for p in block) for block in blocks)
    total = sum(p.numel() * p.element_size() * (1 + p.requires_grad) for p in root)
    if own.get("reshard_after_forward", True):
        total += 4 * largest  # two blocks: the next one is fetched while one computes; each with its gradients
    else:
        total += (len(blocks) + 2) * largest
    if not own.get("reduce_each", True):
        total += FLOAT * sum(p.numel() for p in model.parameters() if p.requires_grad)
    return total
