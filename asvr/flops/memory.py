"""Plan the accelerator memory of a stage.

Weights and gradients follow from the parameters. The optimiser's state is found by a step on small parameters.
Activations are the tensors that autograd keeps for the backward pass. They are found by a forward pass on fake tensors,
which have shapes and no data. With activation checkpointing they are the input of every LLM block and the inside of one
block; in selective mode also the results of products.
"""

import logging
from dataclasses import asdict, dataclass

import torch
from mmengine.config import Config
from torch import nn

from asvr.data.layouts import Layout
from asvr.flops.activations import any_trained, saved_bytes
from asvr.flops.count import is_experts
from asvr.flops.sharded import gathered_offloaded
from asvr.flops.states import States, states_of
from asvr.models.checkpointing import AUTO
from asvr.recipe.build import pack_limits
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe, Stage

logger = logging.getLogger("asvr")

# The share of a card that a plan may fill. The rest is for the CUDA context, workspaces and fragmentation.
USABLE = 0.95
SHORT_TEXT = 64  # text tokens of a sample with an image: a question and its answer


@dataclass(frozen=True)
class Machine:
    """A machine with equal cards. name: a card's memory by its maker. card_bytes: the memory that torch reports."""

    cards: int
    name: str
    card_bytes: float

    def __str__(self) -> str:
        return f"{self.cards} x {self.name}"


GIB = 2**30
MACHINES = (Machine(1, "80 GB", 79.1 * GIB), Machine(8, "80 GB", 79.1 * GIB), Machine(1, "141 GB", 139.8 * GIB))


@dataclass(frozen=True, kw_only=True)
class MemoryPlan(States):
    """Bytes on one card that holds everything: the states, and more.

    activations: by mode of the LLM's activation checkpointing, with the half-precision copies of float32 weights that
    the backward pass needs under autocast. copies: the bytes of these copies alone. mode: the config's. For ``auto`` it
    is ``full``, the least that it needs. A compiled LLM without checkpointing keeps as much as ``selective``. kept: the
    mode of a block without checkpointing. gathered: None, or with FSDP2's ``cpu_offload`` the bytes that a card holds
    of weights that are in use, with their gradients. All states are in the CPU's memory then.
    """

    activations: dict[str, int]
    copies: dict[str, int]
    mode: str
    kept: str = "none"
    gathered: int | None = None

    @property
    def total(self) -> int:
        return self.states + self.activations[self.mode]

    def states_on(self, cards: int) -> int:
        """Bytes of the states on each of ``cards`` cards. They share states evenly, except what each has in full."""
        return self.whole if self.gathered is not None else self.share(cards) + self.whole

    def on_cpu(self, cards: int) -> int:
        """Bytes of the states in the CPU's memory, for each of ``cards`` cards."""
        return self.share(cards) if self.gathered is not None else 0

    def per_card(self, machine: Machine) -> int:
        """Bytes on each card: its share of the states, weights in use with ``cpu_offload``, and the activations."""
        return self.states_on(machine.cards) + (self.gathered or 0) + self.activations[self.mode]

    def fits(self, machine: Machine) -> bool:
        return self.per_card(machine) <= USABLE * machine.card_bytes


def plan_memory(stage: Stage, model: nn.Module) -> MemoryPlan:
    """Plan the memory of a stage. model: from `asvr.recipe.preflight.build_meta`; it cannot be used afterwards.

    The largest micro-batch is assumed: rows of ``data.max_length`` tokens with one image each, or one packed row of the
    largest length, with images that have a short text each. There are no images if the data set leaves them out. All
    text is supervised.
    """
    states = states_of(stage, model)
    half = torch.bfloat16 if stage.optim.precision == "bf16" else None
    shape = largest_micro_batch(stage.data, model.layout.largest())
    rows, tokens, _ = shape
    stream = half or next(model.llm.parameters()).dtype
    passes = 1 + sum(target.own_pass for target in model.targets)
    block_inputs = passes * model.llm.num_layers * rows * tokens * model.llm.hidden_size * stream.itemsize
    gathered = gathered_offloaded(stage, model)
    compiled = stage.runtime.get("compile", False)
    for head in model.heads.values() if compiled else ():
        if getattr(head, "activation_checkpointing", None) == "none":
            head.activation_checkpointing = "selective"  # what the compiler does
    model.llm.eval()  # this switches off checkpointing, which would hide the tensors that it keeps
    for module in model.llm.modules():
        if isinstance(module, nn.Dropout):
            module.train()  # its masks are kept
    inside, products, outside = saved_bytes(model, shape, half)
    one_block = inside // (passes * model.llm.num_layers)
    casts, casts_of_block = _half_copies(model, half)
    mode, kept = stage.model.llm.get("activation_checkpointing", "none"), "selective" if compiled else "none"
    return MemoryPlan(
        **asdict(states),
        activations=dict(
            none=inside + casts + outside,
            selective=block_inputs + products + one_block + casts_of_block + outside,
            full=block_inputs + one_block + casts_of_block + outside,
        ),
        copies=dict(none=casts, selective=casts_of_block, full=casts_of_block),
        mode={"none": kept, AUTO: "full"}.get(mode, mode),
        kept=kept,
        gathered=gathered,
    )


def _half_copies(model: nn.Module, half: torch.dtype | None) -> tuple[int, int]:
    """Bytes of autocast's half-precision copies of float32 weights that the backward pass needs.

    Returns the bytes of all, and the bytes if the LLM's blocks are computed again, which needs the copies of one block
    at a time. Embeddings and experts are not cast. The copies of LM head and classifiers exist only while their loss is
    computed.
    """
    if half is None:
        return 0, 0
    parts = {
        "encoder": (model.encoder, [model.encoder]),
        "projector": (model.projector, [model.projector]),
        "llm": (model.llm, model.llm.blocks),
        "heads": (model.heads, [m for head in model.heads.values() for m in _without_classifiers(head)]),
    }
    reached, found = False, dict.fromkeys(parts, 0)
    for name, (whole, cast) in parts.items():
        reached = reached or any_trained(whole)
        parts_of = [part for module in cast for part in module.modules() if not is_experts(part)]
        own = [p for part in parts_of for p in part.parameters(recurse=False)]
        weights = [p for p in own if p.ndim > 1 and p.dtype == torch.float32]
        found[name] = sum(p.numel() for p in weights) * half.itemsize if reached else 0
    total = sum(found.values())
    return total, total - found["llm"] + found["llm"] // model.llm.num_layers


def _without_classifiers(head: nn.Module) -> list[nn.Module]:
    return [module for name, module in head.named_children() if name != "classifiers"]


def leaves_images_out(data: Config) -> bool:
    """Whether the section ``data`` says that the training samples have no images, as for a blind model."""
    return not (data.get("train") or {}).get("with_images", True)


def largest_micro_batch(data: Config, image: Layout) -> tuple[int, int, int]:
    """The largest micro-batch: rows, tokens of a row, and images. image: the layout of the largest image."""
    limits = pack_limits(data)
    if limits is None:
        return data.micro_batch, data.max_length, 0 if leaves_images_out(data) else data.micro_batch
    if leaves_images_out(data):
        return 1, limits["max_tokens"], 0
    fit = max(1, limits["max_tokens"] // (image.num_tokens + SHORT_TEXT))
    return 1, limits["max_tokens"], min(fit, max(1, (limits["max_images"] or fit) // image.num_crops))


def warn_of_memory(recipe: Recipe, device: torch.device) -> None:
    """Warn before the first stage if the plan of a stage does not fit the CUDA device."""
    if device.type != "cuda":
        return
    card = Machine(1, "device", torch.cuda.get_device_properties(device).total_memory)
    for name, stage in recipe.stages.items():
        try:
            plan = plan_memory(stage, build_meta(stage))
        except Exception as error:  # a user's own component may raise anything on fake tensors, and still train
            logger.warning("memory is not planned: %s", in_one_line(error))
            continue
        if not plan.fits(card):
            logger.warning(
                "stage %s needs %.0f GiB by the plan (--dry-run shows it), %s has %.0f GiB: it is likely to run out of "
                "memory. To need less, lower data.micro_batch or data.max_length, set activation_checkpointing, or "
                "take a smaller LLM",
                name,
                plan.per_card(card) / GIB,
                device,
                card.card_bytes / GIB,
            )


def in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
