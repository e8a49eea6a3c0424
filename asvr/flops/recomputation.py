"""Choose what the backward pass recomputes from the memory there is: ``activation_checkpointing="auto"``.

All blocks of the LLM are recomputed if nothing else fits. Each block that keeps its activations saves the time of its
forward pass. The last blocks keep them first. If all of them do and there is still room, the heads keep theirs too.
"""

from dataclasses import replace

import torch
from torch import nn

from asvr.base.distributed import gather, get_world_size
from asvr.base.free_memory import usable_bytes
from asvr.base.log import logger
from asvr.flops.memory import GIB, MemoryPlan, in_one_line, plan_memory
from asvr.flops.sharded import Sizes, gathered_bytes
from asvr.models.checkpointing import AUTO
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Stage


def fit_memory(stage: Stage, model: nn.Module, device: torch.device) -> None:
    """Plan each part of a `VLM` whose config says ``auto``. Call it before the model is compiled or sharded.

    All processes decide alike, by the one that can keep least. If a model cannot be planned, everything that is
    ``auto`` is recomputed, with a warning. Raises ``ValueError`` if the system does not say how much memory it has.
    """
    llm = model.llm if getattr(model.llm, "activation_checkpointing", None) == AUTO else None
    heads = [head for head in model.heads.values() if getattr(head, "activation_checkpointing", None) == AUTO]
    if llm is None and not heads:
        return
    room = usable_bytes(device)
    layers = 0 if llm is None else llm.num_layers
    # One exchange, which a process reaches whatever happens in its plan: the others would wait for it.
    blocks, keeps_heads = min(gather(_planned(stage, layers, bool(heads), room)))
    if llm is not None:
        blocks = llm.keep_activations(blocks)
    for head in heads if keeps_heads else ():
        head.activation_checkpointing = "none"
    parts = [f"{layers - blocks} of {layers} blocks of the LLM"] if llm is not None else []
    parts += [f"{0 if keeps_heads else len(heads)} of {len(heads)} heads"] if heads else []
    logger.info("activation checkpointing: recomputes %s (%.1f GiB are usable)", " and ".join(parts), room / GIB)


def _planned(stage: Stage, layers: int, has_heads: bool, room: float) -> tuple[int, bool]:
    """How many of the LLM's ``layers`` blocks may keep their activations, and whether the heads may."""
    try:
        plan = _plan(stage, False)
        blocks = kept_blocks(plan, layers, room) if layers else 0
        if not has_heads or blocks < layers:
            return blocks, False
        return blocks, _needed(_plan(stage, True), layers > 0) <= room
    except Exception as error:  # a user's own component may raise anything on fake tensors, and still train
        logger.warning("activation checkpointing: recomputes everything, not planned: %s", in_one_line(error))
        return 0, False


def kept_blocks(plan: MemoryPlan, blocks: int, room: float) -> int:
    """How many of the LLM's blocks may keep their activations. plan: a plan in mode ``full``."""
    each = (_needed(plan, True) - _needed(plan, False)) / blocks
    return max(0, min(blocks, int((room - _needed(plan, False)) // each))) if each > 0 else blocks


def _needed(plan: MemoryPlan, keeps: bool) -> int:
    """Bytes if no block of the LLM is recomputed (``keeps``), or if all are."""
    return plan.states + plan.activations[plan.kept if keeps else "full"]


def _plan(stage: Stage, keep_heads: bool) -> MemoryPlan:
    """The plan for one process, in which all heads that are ``auto`` keep their activations, or none does."""
    model = build_meta(stage)
    for head in model.heads.values():
        if getattr(head, "activation_checkpointing", None) == AUTO:
            head.activation_checkpointing = "none" if keep_heads else "full"
    sizes, sharded = Sizes.of(model), stage.parallel is not None and stage.parallel.type == "FSDP2"
    plan = plan_memory(stage, model)
    if not sharded:
        return plan
    cards = stage.parallel.get("shard") or get_world_size()
    return replace(plan, weights=plan.states_on(cards) + int(gathered_bytes(sizes)), gradients=0, optimizer=0, whole=0)
