"""SigLIP's vision tower inside other checkpoints."""

import math
import re

from torch import nn

from asvr.base.checkpoint_files import Checkpoint
from asvr.interchange.rules import Ignored, Rule

# The published towers: width -> (width of an attention head, number of blocks). No tensor shows the first.
PUBLISHED = {1152: (72, 27), 1024: (64, 24), 768: (64, 12)}
# (patches per side, patch size) -> image size, where the patches do not cover the whole image.
WITH_REST = {(27, 14): 384}


def tower_arch(checkpoint: Checkpoint, prefix: str, name: str = "", num_heads: int | None = None) -> dict:
    """The architecture of a tower whose keys begin with ``prefix`` (it ends in ``vision_model.``), from its tensors.

    name: the tower's published name, which ends in its image size (``siglip-so400m-patch14-384``). Without it the size
    is that of the published tower with as many patches (27 x 27 patches of 14 pixels read 384, not 378).

    Raises ``ValueError`` if the number of heads is not given and the width is not a published one, or if blocks are
    missing.
    """
    positions, width = checkpoint.shape(f"{prefix}embeddings.position_embedding.weight", 2)
    patch_size = checkpoint.shape(f"{prefix}embeddings.patch_embedding.weight", 4)[-1]
    patches = math.isqrt(positions)
    if patches**2 != positions:
        raise ValueError(f"{checkpoint.path}: {positions} positions under {prefix} are no square")
    if num_heads is None and width not in PUBLISHED:
        raise ValueError(
            f"{checkpoint.path}: a tower of width {width} is of no published size, and the number of its attention "
            "heads stands in no tensor: give it (--heads)"
        )
    if num_heads is not None and (num_heads < 1 or width % num_heads):
        raise ValueError(f"{checkpoint.path}: --heads {num_heads}: expected a divisor of the tower's width {width}")
    layers = checkpoint.numbers(re.escape(prefix) + r"encoder\.layers\.(\d+)\..*")
    if width in PUBLISHED and layers != PUBLISHED[width][1]:
        raise ValueError(
            f"{checkpoint.path}: {layers} blocks under {prefix}, a SigLIP tower of width {width} has "
            f"{PUBLISHED[width][1]}: the checkpoint is incomplete"
        )
    return dict(
        model_type="siglip_vision_model",
        hidden_size=width,
        intermediate_size=checkpoint.rows(f"{prefix}encoder.layers.0.mlp.fc1.weight"),
        num_hidden_layers=layers,
        num_attention_heads=num_heads or width // PUBLISHED[width][0],
        image_size=_image_size(name, patches, patch_size),
        patch_size=patch_size,
    )


def _image_size(name: str, patches: int, patch_size: int) -> int:
    named = re.search(r"-(\d+)/?$", name)
    if named and int(named[1]) // patch_size == patches:
        return int(named[1])
    return WITH_REST.get((patches, patch_size), patches * patch_size)


def tower_rules(prefix: str, ours: str, model: nn.Module) -> list:
    """Rules from a tower under ``prefix`` to `HFVisionEncoder`'s ``model`` with keys under ``ours``."""
    kept = sum(1 for key in model.state_dict() if key.endswith("layer_norm1.weight"))
    inner = "vision_model." if any(key.startswith("vision_model.") for key in model.state_dict()) else ""
    theirs = re.escape(prefix)
    later = "|".join(str(i) for i in range(kept, 100))
    return [
        Ignored(rf"{theirs}encoder\.layers\.({later})\..*", "a block behind the layer that is read"),
        Ignored(rf"{theirs}head\..*", "the pooling head, which does not change the patches"),
        Rule(rf"{theirs}(.*)", rf"{ours}{inner}\1"),
    ]
