"""What an LLM does to its logits behind the LM head. Our text loss applies the head itself, so it has to know.

Each field is listed with the families that it was compared in (tests/models/test_llm_families.py): the same name means
another thing elsewhere (``logits_scaling`` divides in Granite and multiplies in HyperCLOVA X).
"""

from transformers import PretrainedConfig

CAPS = dict(gemma2="final_logit_softcapping", gemma3_text="final_logit_softcapping", recurrent_gemma="logits_soft_cap")
FACTORS = dict(cohere="logit_scale", cohere2="logit_scale")
DIVISORS = dict(granite="logits_scaling")
# Fields that change logits, or hidden states in front of the LM head, in some family.
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
    """Arguments of `asvr.models.losses.changed_logits` for an LLM of this configuration; none for most.

    where: its name. Raises ``ValueError`` for a change that the text loss does not know.
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
                f"LLM {where}: `{field}` is not supported by the text loss (of {known} it is): use another LLM"
            )
    return changes
