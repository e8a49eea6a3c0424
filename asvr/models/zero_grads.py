"""Gradients of zero for what a micro-batch does not train, so that processes that share a step make the same ones.

Legend: ``B`` rows, ``T`` tokens in a row, ``H`` LLM width.
"""

import torch
from torch import Tensor, nn

from asvr.data.batch import Batch
from asvr.models.targets import Target


def zero_of(*modules: nn.Module) -> Tensor | float:
    """A zero that depends on every trained parameter of these modules."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return 0 * sum(p.sum() for p in parameters) if parameters else 0.0


def zero_grad_path(model: nn.Module, batch: Batch, hidden: Tensor) -> Tensor:
    """A zero that depends on every trained parameter of a `VLM` that this batch's losses leave out, as ``embed`` makes
    one where there are no images.

    Without it a batch without images, text or losses would leave gradients of some parts undefined, and
    processes that add up gradients would wait for one another. The LLM's blocks, whose weights may be elsewhere by
    now, are reached through what they gave: ``hidden``, after the final norm.
    """
    visual = [target.name for target in model.targets if target.learns_from(batch)]
    idle = [part for parts in (model.heads, model.losses) for name, part in parts.items() if name not in visual]
    zero = torch.zeros((), device=model.device)
    if not batch.num_text_targets:
        idle.append(model.llm.lm_head)
        zero = zero + 0 * hidden.sum()
    if batch.num_images:
        idle.append(model.encoder)  # its losses may leave out a last norm
    return zero + zero_of(*idle)


def idle_pass(model: nn.Module, embeds_BTH: Tensor, target: Target) -> Tensor:
    """A zero, and one token's way through the LLM, to the target's taps and back: in place of the pass that the
    target has besides for other micro-batches. Where blocks are in parts, all processes gather each of them,
    equally often."""
    own_BTH = embeds_BTH[:1, :1] + zero_of(*heads_of(model, target))
    states = model.llm.hidden(own_BTH, set(target.taps))
    return 0 * sum(states[tap].sum() for tap in target.taps)


def heads_of(model: nn.Module, *targets: Target) -> list[nn.Module]:
    """Those that are there: a target need not have one."""
    return [model.heads[target.name] for target in targets if target.name in model.heads]
