"""LLaVA-1.5 checkpoints (github.com/haotian-liu/LLaVA): projector and LLM; the vision tower stands in a folder of its
own, which ``config.json`` names."""

import torch

from asvr.checkpoints.reading import Checkpoint
from asvr.checkpoints.released import llm_arch
from asvr.checkpoints.rules import Ignored, Rule, translate
from asvr.registry import MODELS

RULES = [
    Rule(r"model\.mm_projector\.(.*)", r"projector.mlp.\1"),
    Ignored(r"model\.vision_tower\..*", "the frozen tower, read from the folder that config.json names"),
    Ignored(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "computed from the configuration"),
    Rule(r"((?:model\.(?:embed_tokens|layers|norm)|lm_head)\..*)", r"llm.model.\1"),
]


def import_llava(checkpoint: Checkpoint, encoder: str | None = None) -> tuple[dict, torch.nn.Module]:
    """The config and the `VLM`, without a reconstruction target. encoder: the tower, in place of ``mm_vision_tower``.

    Raises ``ValueError`` with all keys that do not fit, and `asvr.zoo.MissingWeights` where the tower is not here.
    """
    if checkpoint.config is None:
        raise ValueError(f"{checkpoint.path}: config.json is missing beside the weights, which has the LLM's sizes")
    kind = checkpoint.config.get("mm_projector_type", "mlp2x_gelu")
    if kind != "mlp2x_gelu":
        raise ValueError(f"{checkpoint.path}: mm_projector_type {kind!r}, expected 'mlp2x_gelu' (LLaVA-1.5)")
    name = encoder or checkpoint.config.get("mm_vision_tower")
    if name is None:
        raise ValueError(f"{checkpoint.path}: config.json names no mm_vision_tower: give it with --encoder")
    config = dict(
        type="VLM",
        encoder=dict(type="HFVisionEncoder", name=name, layer=checkpoint.config.get("mm_vision_select_layer", -2)),
        projector=dict(type="MLPProjector", layers=2),
        llm=dict(type="HFCausalLM", arch=llm_arch(checkpoint)),
        reconstruction=[],
    )
    model = MODELS.build(config)
    loaded = model.state_dict()  # of which the tower is right already
    own = {key: value for key, value in loaded.items() if not key.startswith("encoder.")}
    model.load_state_dict(loaded | translate(checkpoint, RULES, own))
    return config, model.eval()
