"""SigLIP's vision tower inside other checkpoints."""

import re

from torch import nn

from asvr.checkpoints.reading import Checkpoint
from asvr.checkpoints.rules import Ignored, Rule

# Width of an attention head, where the number of heads stands in no tensor: SO400M has 72, all smaller ones 64.
HEAD_WIDTHS = {1152: 72, 1024: 64, 768: 64}


def tower_arch(checkpoint: Checkpoint, prefix: str, name: str = "", num_heads: int | None = None) -> dict:
    """The architecture of a tower whose keys begin with ``prefix`` (it ends in ``vision_model.``), from its tensors.

    name: the tower's published name, which ends in its image size (``siglip-so400m-patch14-384``): a tower of 27 x 27
    patches of 14 pixels reads 384, not 378, and the picture is resized to that. Without it the patches are filled.

    Raises ``ValueError`` where the number of heads is neither given nor that of a published size.
    """
    embedding, patch = f"{prefix}embeddings.position_embedding.weight", f"{prefix}embeddings.patch_embedding.weight"
    if embedding not in checkpoint or patch not in checkpoint:
        raise ValueError(f"{checkpoint.path}: no SigLIP vision tower under {prefix}")
    positions, width = checkpoint.shapes[embedding]
    side = checkpoint.shapes[patch][-1]
    if num_heads is None and width not in HEAD_WIDTHS:
        raise ValueError(
            f"{checkpoint.path}: a tower of width {width} is of no published size, and the number of its attention "
            "heads stands in no tensor: give it (--heads)"
        )
    layers = {
        int(m[1]) for key in checkpoint.keys() if (m := re.match(re.escape(prefix) + r"encoder\.layers\.(\d+)\.", key))
    }
    return dict(
        model_type="siglip_vision_model",
        hidden_size=width,
        intermediate_size=checkpoint.rows(f"{prefix}encoder.layers.0.mlp.fc1.weight"),
        num_hidden_layers=len(layers),
        num_attention_heads=num_heads or width // HEAD_WIDTHS[width],
        image_size=_image_size(name, round(positions**0.5), side),
        patch_size=side,
    )


def _image_size(name: str, patches: int, patch_size: int) -> int:
    named = re.search(r"-(\d+)/?$", name)
    if named and int(named[1]) // patch_size == patches:
        return int(named[1])
    return patches * patch_size


def tower_rules(prefix: str, ours: str, model: nn.Module) -> list:
    """Rules from a tower under ``prefix`` to `HFVisionEncoder`'s ``model``, whose keys stand under ``ours``."""
    kept = sum(1 for key in model.state_dict() if key.endswith("layer_norm1.weight"))
    inner = "vision_model." if any(key.startswith("vision_model.") for key in model.state_dict()) else ""
    theirs = re.escape(prefix)
    later = "|".join(str(i) for i in range(kept, 100))
    return [
        Ignored(rf"{theirs}encoder\.layers\.({later})\..*", "a block behind the layer that is read"),
        Ignored(rf"{theirs}head\..*", "the pooling head, which gives nothing to a patch"),
        Rule(rf"{theirs}(.*)", rf"{ours}{inner}\1"),
    ]
