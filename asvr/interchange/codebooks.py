"""Import of codebooks of RQ-VAE and the models that follow it: kakaobrain's, VILA-U's, DualToken's, ASVR's."""

import re

import torch
from torch import Tensor

from asvr.base.checkpoint_files import Checkpoint
from asvr.interchange.rules import Ignored, Rule


def drop_padding(weight: Tensor) -> Tensor:
    """Drop the last row of a codebook. It is padding, and no search may find it."""
    return weight[:-1]


def codebook_sizes(checkpoint: Checkpoint, prefix: str, stated: int | None = None) -> dict:
    """``depth``, ``codebook_size`` and ``shared`` of the codebooks under ``prefix``.

    A shared codebook was saved once, or once for each level. stated: the depth, if it is known. Raises ``ValueError``
    if a single codebook was saved and the depth is not stated, or if the stated depth differs from the saved one.
    """
    levels = sorted(
        int(m[1])
        for key in checkpoint.keys()
        if (m := re.fullmatch(re.escape(prefix) + r"codebooks\.(\d+)\.weight", key))
    )
    if levels != list(range(len(levels))) or not levels:
        raise ValueError(f"{checkpoint.path}: codebooks {levels} under {prefix}, expected 0, 1, ...")
    keys = [f"{prefix}codebooks.{i}.weight" for i in levels]
    sizes = [checkpoint.shape(key, 2)[0] - 1 for key in keys]
    if len(keys) == 1:
        if stated is None:
            raise ValueError(
                f"{checkpoint.path}: {keys[0]} stands there once, so no tensor shows how many levels share it: give "
                "the depth of the codes (--depth), or put the release's configuration beside the file"
            )
        if stated < 1:
            raise ValueError(f"{checkpoint.path}: depth {stated}: expected at least 1")
        return dict(depth=stated, codebook_size=sizes[0], shared=stated > 1)
    if stated not in (None, len(keys)):
        raise ValueError(f"{checkpoint.path}: {len(keys)} codebooks under {prefix}, but the depth stated is {stated}")
    first = checkpoint[keys[0]]
    shared = all(
        size == sizes[0] and torch.equal(checkpoint[key], first) for key, size in zip(keys[1:], sizes[1:], strict=True)
    )
    return dict(depth=len(keys), codebook_size=sizes[0] if len(set(sizes)) == 1 else sizes, shared=shared)


def codebook_rules(prefix: str, ours: str, shared: bool) -> list:
    """Rules from codebooks under ``prefix`` to those of a `ResidualQuantizer` under ``ours``."""
    theirs = re.escape(prefix)
    own = r"codebooks\.0\.weight" if shared else r"codebooks\.(\d+)\.weight"
    return [
        Rule(f"{theirs}{own}", rf"{ours}codebooks.{'0' if shared else chr(92) + '1'}.weight", drop_padding),
        Ignored(rf"{theirs}codebooks\.\d+\.weight", "a copy of the shared codebook"),
        Ignored(rf"{theirs}codebooks\.\d+\.(cluster_size_ema|embed_ema)", "moving averages of the codebook's training"),
    ]


def uniform_shares(expected: dict[str, Tensor], ours: str) -> dict[str, Tensor]:
    """Our moving shares of codes, the same for all codes, because these checkpoints do not have them."""
    keys = [key for key in expected if key.startswith(ours) and key.endswith(".share")]
    return {key: torch.full_like(expected[key], 1 / len(expected[key])) for key in keys}
