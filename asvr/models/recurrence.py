"""A check that transformers generates correctly with a recurrent LLM. It runs before the first answer.

Padding before a prompt changes the state of a recurrence, unless the model skips it (Mamba does, RecurrentGemma does
not). The state must also be carried from token to token.
"""

import torch
from torch import Tensor

ROUNDING = 3e-2  # relative to the size of the logits: rounding in half precision is below it
PADDING = 3
PROBLEMS = (
    "its state is not carried from token to token: use another LLM",
    "its state is not kept apart from padding: give prompts of one length, or one at a time (evaluation.batch_size=1)",
)


@torch.inference_mode()
def check_recurrence(llm: torch.nn.Module, *, padded: bool) -> None:
    """Raise ``ValueError`` if generation in a batch differs from what the LLM computes for each row alone.

    llm: an `HFCausalLM`. padded: whether to try it also with padding on the left of a row."""
    tried = vars(llm).setdefault("recurrence", {})  # padding -> change of the logits
    for padding in (0, PADDING) if padded else (0,):
        if padding not in tried:
            tried[padding] = _moved(llm, padding)
        if not tried[padding] < ROUNDING:
            raise ValueError(
                f"LLM {llm.model.config.model_type}: transformers generates wrongly, {PROBLEMS[bool(padding)]} (the "
                f"logits change by {tried[padding]:.1e} of their size)"
            )


def _moved(llm, padding: int) -> float:
    """Return how much the logits of the second new token change, relative to their size."""
    device = next(llm.parameters()).device
    generator = torch.Generator("cpu").manual_seed(0)
    ids_BT = torch.randint(llm.vocab_size, (2, 4 + padding), generator=generator, device="cpu").to(device)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, :padding] = 0
    embeds_BTH = llm.embed(ids_BT)
    options = dict(do_sample=False, pad_token_id=0, eos_token_id=None, output_logits=True, return_dict_in_generate=True)
    options |= dict(max_new_tokens=2, synced_gpus=False)
    out = llm.model.generate(inputs_embeds=embeds_BTH, attention_mask=mask_BT, **options)
    found_BV = out.logits[-1].float()
    alone = [
        _last_logits(llm, torch.cat([embeds_BTH[row, padding * row :], llm.embed(out.sequences[row, :1])])[None])
        for row in range(2)
    ]
    alone_BV = torch.cat(alone).float()
    return ((found_BV - alone_BV).square().mean(-1).sqrt() / alone_BV.square().mean().sqrt()).max().item()


def _last_logits(llm, embeds_BTH: Tensor) -> Tensor:
    return llm.model(inputs_embeds=embeds_BTH, use_cache=False).logits[:, -1]
