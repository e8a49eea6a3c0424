"""Greedy answers for a batch of prompts with images.

Legend: ``B`` rows, ``T`` tokens in a row, ``H`` LLM width.
"""

import logging

import torch
from torch import Tensor

from asvr.data.batch import Batch

logger = logging.getLogger("asvr")


class PromptTooLong(ValueError):
    """A prompt that is too long: the LLM has no position left for an answer, or not enough for the given answer."""


@torch.inference_mode()
def generate(model, batch: Batch, tokenizer, *, template=None, max_new_tokens: int, **kwargs) -> list[str]:
    """Answer the prompts of ``batch``. A prompt is a row that ends where an answer begins. Returns one text per row.

    An answer ends at EOS, where ``template`` ends it, or when the LLM has no further position. kwargs go to
    transformers' ``generate``. The default is greedy decoding. Raises `PromptTooLong` if a prompt leaves no position.
    """
    stops = [tokenizer.eos_id]
    if template is not None and template.stop is not None:
        stops += tokenizer.encode(template.stop, control=True)
    embeds_BTH, _ = model.embed(batch)
    rule, index_BT, mask_BT = model.attention_rule(batch), *to_the_left(batch.attention_mask_BT)
    new_ids = model.llm.generate(
        embeds_BTH.gather(1, index_BT.unsqueeze(-1).expand_as(embeds_BTH)),
        mask_BT,
        **({} if rule is None else dict(rule=rule.moved(index_BT, mask_BT))),
        max_new_tokens=_room(model, batch, max_new_tokens),
        pad_token_id=tokenizer.pad_id,
        eos_token_id=stops,
        **dict(dict(do_sample=False), **kwargs),
    )
    answers = [tokenizer.decode(ids) for ids in new_ids.tolist()]
    if template is not None and template.stop_text is not None:
        answers = [answer.split(template.stop_text)[0] for answer in answers]
    return [answer.strip() for answer in answers]


def _room(model, batch: Batch, max_new_tokens: int) -> int:
    """The number of tokens that can follow the longest prompt: ``max_new_tokens``, or fewer (with a warning)."""
    positions, longest = getattr(model.llm, "max_positions", None), batch.attention_mask_BT.shape[1]
    if positions is None or longest + max_new_tokens <= positions:
        return max_new_tokens
    if longest >= positions:
        raise PromptTooLong(f"a prompt of {longest} tokens: the LLM has {positions} positions; shorten it")
    logger.warning(
        "max_new_tokens=%d: the LLM has %d positions and the prompt %d tokens, so answers end after %d tokens",
        *(max_new_tokens, positions, longest, positions - longest),
    )
    return positions - longest


def to_the_left(mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding of rows from the right to the left, because generation needs it there.

    Returns index_BT for ``gather``, and the new mask.
    """
    width = mask_BT.shape[1]
    shift_B1 = width - mask_BT.sum(1, keepdim=True)
    index_BT = (torch.arange(width, device=mask_BT.device) - shift_B1) % width
    return index_BT, mask_BT.gather(1, index_BT)
