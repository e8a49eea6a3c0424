"""Zero gradients for parts that a micro-batch does not use, so that all processes of a step have the same gradients.

Legend: ``B`` rows, ``T`` tokens in a row, ``H`` LLM width.
"""

import torch
from torch import Tensor, nn

from asvr.data.batch import Batch
from asvr.models.targets import Target


def zero_of(*modules: nn.Module) -> Tensor | float:
    """Return a zero that depends on every trained parameter of these modules."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return 0 * sum(p.sum() for p in parameters) if parameters else 0.0


def zero_grad_path(model: nn.Module, batch: Batch, hidden: Tensor) -> Tensor:
    """Return a zero that depends on every trained parameter of a `VLM` that the losses of this batch do not use.

    Without it, a batch without images or text would leave some gradients undefined, and processes that add up gradients
    would wait for one another. (For a batch without images, ``VLM.embed`` does the same for the visual parts.)

    hidden: the hidden states after the final norm. The zero depends on the LLM's blocks through them, because the
    weights of the blocks may be sharded again by now.
    """
    visual = [target.name for target in model.targets if target.learns_from(batch)]
    idle = [part for parts in (model.heads, model.losses) for name, part in parts.items() if name not in visual]
    zero = torch.zeros((), device=model.device)
    if not batch.num_text_targets:
        idle.append(model.llm.lm_head)
        zero = zero + 0 * hidden.sum()
    if batch.num_images:
        idle.append(model.encoder)  # the features may not depend on all its weights, such as a last norm
    return zero + zero_of(*idle)


def idle_pass(model: nn.Module, embeds_BTH: Tensor, target: Target) -> Tensor:
    """Run the LLM on one token up to the target's taps, and return a zero that depends on the result.

    It replaces the target's own pass in a micro-batch that does not need it. With sharded blocks, every process must
    gather each block equally often."""
    own_BTH = embeds_BTH[:1, :1] + zero_of(*heads_of(model, target))
    states = model.llm.hidden(own_BTH, set(target.taps))
    return 0 * sum(states[tap].sum() for tap in target.taps)


def heads_of(model: nn.Module, *targets: Target) -> list[nn.Module]:
    """Return the heads of these targets. A target may have none."""
    return [model.heads[target.name] for target in targets if target.name in model.heads]
