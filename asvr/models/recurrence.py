"""Whether transformers generates with a recurrent LLM what the LLM computes: tried before its first answer.

A recurrence goes through padding in front of a prompt, unless the model leaves padding out (Mamba does, RecurrentGemma
does not), and its state has to be carried from token to token.
"""

import torch
from torch import Tensor

ROUNDING = 3e-2  # of the size of the logits: half precision is within it
PADDING = 3
PROBLEMS = (
    "its state is not carried from token to token: use another LLM",
    "its state is not kept apart from padding: give prompts of one length, or one at a time (evaluation.batch_size=1)",
)


@torch.inference_mode()
def check_recurrence(llm: torch.nn.Module, *, padded: bool) -> None:
    """Raise ``ValueError`` where what is generated for rows side by side, one of them behind padding on the left if
    ``padded``, is not what the LLM computes for each row alone. llm: an `HFCausalLM`."""
    tried = vars(llm).setdefault("recurrence", {})  # how far logits move, by padding
    for padding in (0, PADDING) if padded else (0,):
        if padding not in tried:
            tried[padding] = _moved(llm, padding)
        if not tried[padding] < ROUNDING:
            raise ValueError(
                f"LLM {llm.model.config.model_type}: transformers generates wrongly, {PROBLEMS[bool(padding)]} (logits "
                f"move by {tried[padding]:.1e} of their size)"
            )


def _moved(llm, padding: int) -> float:
    """How far the logits of the second new token move, against their size."""
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
