"""Tokenizers of DualToken (github.com/songweii/DualToken), also inside released ASVR checkpoints."""

import re

import torch
from torch import Tensor

from asvr.checkpoints.reading import Checkpoint
from asvr.checkpoints.rules import Ignored, Rule, translate
from asvr.checkpoints.siglip import tower_arch, tower_rules
from asvr.models.tokenizers.semantic import SemanticTokenizer

# Branch -> layer of the tower (as in ``hidden_states``) and the names of its quantiser and its projection.
BRANCHES = dict(
    semantic=(-2, "quantizer_semantic.", "prequant_semantic."),
    appearance=(6, "quantizer.", "prequant_visual."),
)
OTHERS = r"(decoder|post_quant_conv|postquant_\w+|prequant_\w+|quantizer\w*)\..*"


def drop_padding(weight: Tensor) -> Tensor:
    """Codebooks of the RQ-VAE lineage have one row more, for padding, which no search may find."""
    return weight[:-1]


def codebook_sizes(checkpoint: Checkpoint, prefix: str) -> dict:
    """``depth``, ``codebook_size`` and ``shared`` of the codebooks under ``prefix``.

    A shared codebook stands there once or once a level; ``depth`` of one that stands there once is not to be seen.
    """
    levels = sorted(
        int(m[1])
        for key in checkpoint.keys()
        if (m := re.fullmatch(re.escape(prefix) + r"codebooks\.(\d+)\.weight", key))
    )
    if levels != list(range(len(levels))) or not levels:
        raise ValueError(f"{checkpoint.path}: codebooks {levels} under {prefix}, expected 0, 1, ...")
    keys = [f"{prefix}codebooks.{i}.weight" for i in levels]
    sizes = [checkpoint.rows(key) - 1 for key in keys]
    first = checkpoint[keys[0]]
    shared = len(keys) > 1 and all(
        size == sizes[0] and torch.equal(checkpoint[key], first) for key, size in zip(keys[1:], sizes[1:], strict=True)
    )
    return dict(depth=len(keys), codebook_size=sizes[0] if len(set(sizes)) == 1 else sizes, shared=shared)


def codebook_rules(prefix: str, ours: str, shared: bool) -> list:
    """Rules from codebooks under ``prefix`` to those of a `ResidualQuantizer` under ``ours``."""
    theirs = re.escape(prefix)
    copies = r"codebooks\.0\.weight" if shared else r"codebooks\.(\d+)\.weight"
    return [Rule(f"{theirs}{copies}", rf"{ours}codebooks.{'0' if shared else chr(92) + '1'}.weight", drop_padding)]


def uniform_shares(expected: dict[str, Tensor], ours: str) -> dict[str, Tensor]:
    """Our moving shares of codes, which a checkpoint without moving averages does not have: all codes alike."""
    keys = [key for key in expected if key.startswith(ours) and key.endswith(".share")]
    return {key: torch.full_like(expected[key], 1 / len(expected[key])) for key in keys}


def import_dualtoken(
    checkpoint: Checkpoint, branch: str, *, prefix: str = "", name: str = "", num_heads: int | None = None
) -> tuple[dict, SemanticTokenizer]:
    """The config and the tokenizer of one branch of DualToken's first two generations (A and B).

    branch: ``semantic`` (the 26th layer's features; projected to 256 in generation A, as they are in B) or
    ``appearance`` (the 6th layer's, through ``prequant_visual``). prefix: of its keys. name, num_heads: see
    `tower_arch`. The pixel decoder is not read. Raises ``ValueError`` with all keys that do not fit.
    """
    if branch not in BRANCHES:
        raise ValueError(f"branch {branch!r}: expected one of {', '.join(BRANCHES)}")
    layer, quantizer, projection = BRANCHES[branch]
    tower = f"{prefix}siglip_model.vision_model."
    encoder = dict(type="HFVisionEncoder", layer=layer, arch=tower_arch(checkpoint, tower, name, num_heads))
    config = dict(
        type="SemanticTokenizer", **codebook_sizes(checkpoint, f"{prefix}{quantizer}"), projection=None, encoder=encoder
    )
    conv = f"{prefix}{projection}conv1.weight"
    if conv in checkpoint:
        config["projection"] = dict(type="resnet", width=checkpoint.rows(conv))
    tokenizer = SemanticTokenizer(**{key: value for key, value in config.items() if key != "type"})
    theirs = re.escape(prefix)
    rules = [
        *tower_rules(tower, "own_encoder.model.", tokenizer.encoder.model),
        *codebook_rules(f"{prefix}{quantizer}", "quantizer.", config["shared"]),
        Rule(rf"{theirs}{re.escape(projection)}(.*)", r"projection.\1"),
        Ignored(rf"{theirs}siglip_model\.(text_model\..*|logit_\w+)", "SigLIP's text side"),
        Ignored(rf"{theirs}{OTHERS}", "the other branch, the pixel decoder, or moving averages"),
        Ignored(rf"(?!{theirs}).*" if prefix else r"(?!)", "not the tokenizer's"),
    ]
    expected = tokenizer.state_dict()
    tensors = translate(checkpoint, rules, expected, made=[r".*\.share"]) | uniform_shares(expected, "quantizer.")
    tokenizer.load_state_dict(tensors)
    return config, tokenizer.eval()
