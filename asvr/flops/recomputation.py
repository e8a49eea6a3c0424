"""Choose what the backward pass recomputes from the memory there is: ``activation_checkpointing="auto"``.

All blocks of the LLM are recomputed if nothing else fits. Each block that keeps its activations saves the time of its
forward pass. The last blocks keep them first. If all of them do and there is still room, the heads keep theirs too.

A plan is made for the largest micro-batch. One process that is not compiled then decides for each micro-batch by its
own size. Otherwise the plan for the largest one holds for all: a compiled block cannot change, and processes have to
agree.
"""

from dataclasses import replace

import torch
from torch import nn

from asvr.base.distributed import gather, get_world_size
from asvr.base.free_memory import usable_bytes
from asvr.base.log import logger
from asvr.flops.memory import GIB, MemoryPlan, in_one_line, largest_micro_batch, plan_memory
from asvr.flops.sharded import Sizes, gathered_bytes
from asvr.models.checkpointing import AUTO, LinearBytes, Recomputation
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Stage


def fit_memory(stage: Stage, model: nn.Module, device: torch.device) -> None:
    """Plan each part of a `VLM` whose config says ``auto``. Call it before the model is compiled or sharded.

    All processes decide alike, by the one that can keep least. If a model cannot be planned, everything that is
    ``auto`` is recomputed, with a warning. Raises ``ValueError`` if the system does not say how much memory it has.
    """
    has_llm = getattr(model.llm, "activation_checkpointing", None) == AUTO
    heads = [name for name, head in model.heads.items() if getattr(head, "activation_checkpointing", None) == AUTO]
    if not has_llm and not heads:
        return
    room, layers = usable_bytes(device), model.llm.num_layers if has_llm else 0
    plan = _planned(stage, layers, heads, room, device)
    # One exchange, which a process reaches whatever happens in its plan: the others would wait for it.
    blocks, keeps_heads = min(gather((0, False) if plan is None else plan.kept(plan.tokens)))
    if has_llm:
        blocks = model.llm.keep_activations(blocks)
    for name in heads:
        model.heads[name].activation_checkpointing = "none" if keeps_heads else "full"
    parts = [f"{layers - blocks} of {layers} blocks of the LLM"] if has_llm else []
    parts += [f"{0 if keeps_heads else len(heads)} of {len(heads)} heads"] if heads else []
    text = " and ".join(parts)
    everything = blocks == layers and (keeps_heads or not heads)
    if plan is not None and not everything and _decides_by_size(stage, model):
        model.recomputation = plan
        text += f" in a micro-batch of {plan.tokens} tokens, less in a smaller one"
    logger.info("activation checkpointing: recomputes %s (%.1f GiB are usable)", text, room / GIB)


def _decides_by_size(stage: Stage, model: nn.Module) -> bool:
    """Whether the decision may change from one micro-batch to the next."""
    fixed = stage.parallel is not None or stage.runtime.get("compile")
    return not fixed and getattr(model.llm, "switches_blocks", True)


def _planned(stage: Stage, layers: int, heads: list[str], room: float, device: torch.device) -> Recomputation | None:
    """What fits. layers: of an LLM that is ``auto``, or 0. heads: names of those that are ``auto``."""
    try:
        plan, tokens, crops = _plan(stage, False, device)
        mode = plan.kept if layers else plan.mode
        return Recomputation(
            layers=layers,
            heads=tuple(heads),
            room=room,
            tokens=tokens,
            crops=crops,
            least=_linear_bytes(plan, "full" if layers else mode, tokens),
            llm_kept=_linear_bytes(plan, mode, tokens),
            all_kept=_linear_bytes(_plan(stage, True, device)[0], mode, tokens) if heads else None,
        )
    except Exception as error:  # a user's own component may raise anything on fake tensors, and still train
        logger.warning("activation checkpointing: recomputes everything, not planned: %s", in_one_line(error))
        return None


def _linear_bytes(plan: MemoryPlan, mode: str, tokens: int) -> LinearBytes:
    """The bytes of a plan as a function of the tokens in a micro-batch. Only activations grow with them."""
    copies = plan.copies[mode]
    return LinearBytes(plan.states + copies, (plan.activations[mode] - copies) / tokens)


def _plan(stage: Stage, keep_heads: bool, device: torch.device) -> tuple[MemoryPlan, int, int]:
    """The plan for one process, and the tokens and the crops of its micro-batch.

    keep_heads: whether all heads that are ``auto`` keep their activations, or none does."""
    model = build_meta(stage)
    for head in model.heads.values():
        if getattr(head, "activation_checkpointing", None) == AUTO:
            head.activation_checkpointing = "none" if keep_heads else "full"
    sizes, sharded = Sizes.of(model), stage.parallel is not None and stage.parallel.type == "FSDP2"
    image = model.layout.largest()
    rows, tokens, images = largest_micro_batch(stage.data, image)
    plan = plan_memory(stage, model)
    if sharded:
        cards = stage.parallel.get("shard") or get_world_size()
        held = plan.states_on(cards) + (plan.on_cpu(cards) if device.type == "cpu" else 0)
        held += int(gathered_bytes(sizes)) if plan.gathered is None else plan.gathered
        plan = replace(plan, weights=held, gradients=0, optimizer=0, whole=0)
    return plan, rows * tokens, images * image.num_crops
