"""Import of LLaVA-1.5 checkpoints (github.com/haotian-liu/LLaVA). They hold the projector and the LLM. The vision tower
is in a folder of its own, which ``config.json`` names."""

import torch
from torch import Tensor

from asvr.base.checkpoint_files import Checkpoint
from asvr.interchange.released import llm_arch, refuse_other_features
from asvr.interchange.rules import Ignored, Rule, translate
from asvr.recipe.model_file import build_described

TOWER = "model.vision_tower.vision_tower."
RULES = [
    Rule(r"model\.mm_projector\.(.*)", r"projector.mlp.\1"),
    Ignored(r"model\.vision_tower\..*", "the tower, the same as in the folder that config.json names"),
    Ignored(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "computed from the configuration"),
    Rule(r"((?:model\.(?:embed_tokens|layers|norm)|lm_head)\..*)", r"llm.model.\1"),
]


def import_llava(checkpoint: Checkpoint, encoder: str | None = None) -> tuple[dict, torch.nn.Module]:
    """The config and the `VLM`, without a reconstruction target. encoder: the tower, in place of ``mm_vision_tower``.

    Raises ``ValueError`` with all keys that do not fit, or if the checkpoint trained its tower. Raises
    `asvr.base.hub.MissingWeights` if the tower is not on this machine.
    """
    kind = checkpoint.setting("mm_projector_type", str, "mlp2x_gelu")
    if kind != "mlp2x_gelu":
        raise ValueError(f"{checkpoint.path}: mm_projector_type {kind!r}, expected 'mlp2x_gelu' (LLaVA-1.5)")
    refuse_other_features(checkpoint)
    name = encoder or checkpoint.setting("mm_vision_tower", str)
    if name is None:
        raise ValueError(f"{checkpoint.path}: config.json names no mm_vision_tower: give it with --encoder")
    layer = checkpoint.setting("mm_vision_select_layer", int, -2)
    config = dict(
        type="VLM",
        encoder=dict(type="HFVisionEncoder", name=name, layer=layer),
        projector=dict(type="MLPProjector", layers=2),
        llm=dict(type="HFCausalLM", arch=llm_arch(checkpoint)),
        reconstruction=[],
    )
    model = build_described(config, checkpoint.path)
    _refuse_trained_tower(checkpoint, model.encoder.model.state_dict(), name)
    loaded = model.state_dict()  # the tower in it is right already
    own = {key: value for key, value in loaded.items() if not key.startswith("encoder.")}
    model.load_state_dict(loaded | translate(checkpoint, RULES, own))
    return config, model.eval()


def _refuse_trained_tower(checkpoint: Checkpoint, frozen: dict[str, Tensor], name: str) -> None:
    """Raise ``ValueError`` if the checkpoint has a tower that differs from the one in the tower's own folder.

    A checkpoint has a tower if the tower was trained, or if a frozen tower was saved too. The weights are compared in
    the checkpoint's dtype, and in bfloat16, because LLaVA trains in it.
    """
    own = {key.removeprefix(TOWER): key for key in checkpoint.keys() if key.startswith(TOWER)}
    if not own and checkpoint.setting("unfreeze_mm_vision_tower", bool, False):
        raise ValueError(f"{checkpoint.path}: its vision tower was trained (unfreeze_mm_vision_tower) but is not in it")
    for key, value in frozen.items():
        # transformers 5.x names CLIP's parts without vision_model.
        place = next((k for k in (key, f"vision_model.{key}", key.removeprefix("vision_model.")) if k in own), None)
        if place is not None:
            saved = checkpoint[own[place]]
            same = saved.shape == value.shape and any(
                torch.equal(value.to(through).to(saved.dtype), saved) for through in (saved.dtype, torch.bfloat16)
            )
            if not same:
                raise ValueError(
                    f"{checkpoint.path}: its vision tower differs from {name} (first: {own[place]}), so it was "
                    "trained: a tower inside a LLaVA checkpoint is not imported; save it as a folder and give that "
                    "with --encoder"
                )
