"""How an LLM changes its logits after the LM head. The text loss applies the head itself, so it must do the same.

Each field is listed with the model families in which it was compared (tests/models/test_llm_families.py). In other
families the same name may mean something else: ``logits_scaling`` divides in Granite and multiplies in HyperCLOVA X.
"""

from transformers import PretrainedConfig

CAPS = dict(gemma2="final_logit_softcapping", gemma3_text="final_logit_softcapping", recurrent_gemma="logits_soft_cap")
FACTORS = dict(cohere="logit_scale", cohere2="logit_scale")
DIVISORS = dict(granite="logits_scaling")
# Fields that in some family change the logits, or the hidden states before the LM head.
FIELDS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "logits_soft_cap",
    "output_logit_soft_cap",
    "output_multiplier",
    "logits_mup_width_multiplier",
)


def logit_changes(config: PretrainedConfig, where: str) -> dict[str, float]:
    """Return the arguments of `asvr.models.losses.changed_logits` for an LLM with this configuration; most need none.

    where: the LLM's name, for messages. Raises ``ValueError`` for a change that the text loss does not support.
    """
    kind, changes = config.model_type, {}
    for field in FIELDS:
        value = getattr(config, field, None)
        if value in (None, 1.0):
            continue
        if CAPS.get(kind) == field:
            changes["softcap"] = float(value)
        elif FACTORS.get(kind) == field:
            changes["scale"] = float(value)
        elif DIVISORS.get(kind) == field:
            changes["scale"] = 1.0 / value
        else:
            known = ", ".join(sorted(CAPS | FACTORS | DIVISORS))
            raise ValueError(
                f"LLM {where}: `{field}` is not supported by the text loss (only for {known}): use another LLM"
            )
    return changes
