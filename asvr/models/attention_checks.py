"""Checks of an LLM's attention: samples of a packed row do not see each other, and attention rules are followed."""

import torch
from torch import Tensor, nn

from asvr.data.batch import Segments
from asvr.models.attention import PREFIX, eager_only, set_kernel
from asvr.models.visual_attention import AttentionRule

SAMPLES = 8  # number of packed samples in the check
# Limits of relative differences. In float32, rounding is far below LEAK, and the effect of another sample is above it.
# In half precision, rounding depends on the shape of a row (ROUNDING_IN_HALF); rows of the same shape hardly differ.
LEAK, LEAK_IN_HALF, ROUNDING_IN_HALF = 3e-5, 1e-2, 5e-2
NO_KERNELS = "does not work with the attention kernels of this library"


@torch.no_grad()
def check_isolation(llm: nn.Module, dtype: torch.dtype | None) -> None:
    """Check that the samples of a packed row have the same hidden states as alone.

    It is checked as in training, and with the kernel that rounds least. dtype: dtype of autocast, or None.

    Raises ``ValueError`` if they differ, or if the LLM cannot use the kernels of this library. A convolution or a
    recurrence over the row knows nothing of samples, and some LLMs do not pass the samples on to the kernel.
    """
    problem = None if getattr(llm, "own_kernels", False) else f"{NO_KERNELS}{_why(llm)}"
    if problem is None:
        training = llm.training
        llm.eval()  # with dropout, two passes would always differ
        try:
            seen = _leaks(llm, dtype) + _leaks_with_sdpa(llm)
        finally:
            llm.train(training)
        if seen:
            problem = f"lets a sample of a row see the one before (its states change by {max(seen):.1e} of their size)"
    if problem is not None:
        raise ValueError(
            f"data.pack: {type(llm).__name__} {problem}, so samples could not be kept apart: set data.pack=False"
        )


@torch.no_grad()
def check_rules(llm: nn.Module) -> None:
    """Check that the LLM follows an attention rule.

    The first token of an image must see its last token, and text must not see later tokens. Raises ``ValueError`` if
    the LLM cannot use the kernels of this library, or does not pass the rule on to them.
    """
    problem = None if getattr(llm, "own_kernels", False) else NO_KERNELS
    if problem is None:
        training = llm.training
        llm.eval()
        try:
            problem = _broken_rule(llm)
        finally:
            llm.train(training)
    if problem is not None:
        raise ValueError(
            f"model.visual_attention: {type(llm).__name__} {problem}, so visual tokens cannot see each other: set "
            "model.visual_attention='causal', and leave out targets that mask images"
        )


def _broken_rule(llm: nn.Module) -> str | None:
    """Return how attention breaks the rule, as text. None: it follows the rule."""
    generator = torch.Generator("cpu").manual_seed(0)
    # Four tokens: text, two of an image, text.
    embeds_BTH = _random_embeds(llm, generator)[:1].to(next(llm.parameters()).device)
    image_BT = torch.tensor([[-1, 0, 0, -1]], device=embeds_BTH.device)
    seen_BT = torch.ones_like(image_BT)
    rule = AttentionRule(image_BT, seen_BT, seen_BT)
    whole_TH = llm.hidden(embeds_BTH, {-1}, rule=rule)[-1][0].float()
    exact = {parameter.dtype for parameter in llm.parameters()} == {torch.float32}
    limit = (LEAK if exact else LEAK_IN_HALF) * whole_TH.square().mean().sqrt()  # rounding in experts varies by tokens
    for place, others in ((2, [1, 2, 3]), (3, [3])):
        changed_BTH = embeds_BTH.clone()
        changed_BTH[0, place] = embeds_BTH[0, 0] + 1
        moved_TH = llm.hidden(changed_BTH, {-1}, rule=rule)[-1][0].float() - whole_TH
        moved_T = moved_TH.square().mean(-1).sqrt() > limit
        if moved_T.nonzero().flatten().tolist() != others:
            return "does not pass the attention rule on to its layers"
    return None


def _why(llm: nn.Module) -> str:
    config = getattr(getattr(llm, "model", None), "config", None)
    reason = None if config is None else eager_only(config)
    return "" if reason is None else f" ({reason})"


def _leaks_with_sdpa(llm: nn.Module) -> list[float]:
    """Run `_leaks` without autocast and with SDPA, which rounds least. An LLM without a ``config`` is not checked."""
    config = getattr(getattr(llm, "model", None), "config", None)
    if config is None:
        return []
    chosen = config._attn_implementation.removeprefix(PREFIX)
    set_kernel(llm, "sdpa")
    try:
        return _leaks(llm, None)
    finally:
        set_kernel(llm, chosen)


def _leaks(llm: nn.Module, dtype: torch.dtype | None) -> list[float]:
    """Return how far the states of packed samples change, relative to their size, if it is more than rounding.

    They are compared with the states in a row of their own, and with the states after another neighbour. dtype: dtype
    of autocast."""
    device, weights = next(llm.parameters()).device, {parameter.dtype for parameter in llm.parameters()}
    generator = torch.Generator("cpu").manual_seed(0)
    embeds_BTH, others_BTH = (_random_embeds(llm, generator).to(device) for _ in range(2))
    others_BTH[1::2] = embeds_BTH[1::2]  # every second sample stays the same
    segments = Segments.of([embeds_BTH.shape[1]] * SAMPLES).to(device)

    def packed(rows_BTH: Tensor) -> Tensor:
        out = llm.hidden(rows_BTH.flatten(0, 1)[None], {-1}, segments=segments)[-1]
        return out.float().view_as(alone_BTH)

    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        alone_BTH = llm.hidden(embeds_BTH, {-1})[-1].float()
        packed_BTH, changed_BTH = packed(embeds_BTH), packed(others_BTH)
    exact = {dtype or torch.float32} | weights == {torch.float32}
    found = [
        (_moved(packed_BTH[1:], alone_BTH[1:]), LEAK if exact else ROUNDING_IN_HALF),
        (_moved(changed_BTH[1::2], packed_BTH[1::2]), LEAK if exact else LEAK_IN_HALF),
    ]
    return [moved for moved, limit in found if not moved < limit]


def _random_embeds(llm: nn.Module, generator: torch.Generator) -> Tensor:
    """Return embeds_BTH of random token ids, or random numbers for an LLM without ``vocab_size``."""
    if (words := getattr(llm, "vocab_size", None)) is None:
        weight = next(llm.parameters())
        return torch.randn(SAMPLES, 4, llm.hidden_size, generator=generator, device="cpu").to(weight)
    ids_BT = torch.randint(words, (SAMPLES, 4), generator=generator, device="cpu")
    return llm.embed(ids_BT.to(next(llm.parameters()).device)).clone()


def _moved(states_BTH: Tensor, others_BTH: Tensor) -> float:
    """Return the relative change: the median over samples, then the maximum over the positions in a sample.

    The median, because rounding may change the choice of experts in a few samples. The maximum, because a short
    convolution reaches only the first positions."""
    moved_BT = (states_BTH - others_BTH).square().mean(-1).sqrt() / others_BTH.square().mean().sqrt()
    return moved_BT.median(0).values.max().item()
