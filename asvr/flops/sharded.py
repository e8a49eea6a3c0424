"""Sizes of a model that is sharded over several cards, see `asvr.engine.parallel.FSDP2`."""

from dataclasses import dataclass

import torch
from torch import nn

from asvr.models.trainable import kept_whole, trained_shares

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


def _count(parameters) -> int:
    return sum(p.numel() for p in parameters)


def gathered_bytes(sizes: Sizes) -> float:
    """Bytes of gathered weights that a card holds besides its shard, with their gradients.

    They are the root unit in float32, and two blocks in half precision: the next one is fetched while one computes.
    """
    return 2 * (sizes.root * FLOAT + 2 * sizes.blocks / sizes.num_blocks * HALF)
