"""Import of VQGANs: taming-transformers, RQ-VAE (kakaobrain), LlamaGen, Janus.

All four have the same networks as transformers' ``JanusVQVAE``. They differ in the names and the order of their blocks,
in the levels with attention, and in how a code is looked up.
"""

import re
from pathlib import Path

import torch
import yaml

from asvr.base.checkpoint_files import Checkpoint
from asvr.interchange.codebooks import codebook_sizes, drop_padding
from asvr.interchange.rules import Ignored, Rule, translate
from asvr.models.tokenizers.pixel import PixelTokenizer

# The three members of the middle block, in the order of LlamaGen's numbers.
MIDDLE = ("block_1", "attn_1", "block_2")
CODEBOOK = "quantize.embedding.weight"


def import_vqgan(checkpoint: Checkpoint, kind: str, **options) -> tuple[dict, PixelTokenizer]:
    """The config and the tokenizer of a VQGAN, see `plan`. Raises ``ValueError`` with all keys that do not fit."""
    config, tokenizer, keys = plan(checkpoint, kind, **options)
    expected = {key: tensor for key, tensor in tokenizer.state_dict().items() if key.startswith("model.")}
    tensors = translate(checkpoint, keys, expected)
    tokenizer.load_state_dict(tensors | dict(trained=torch.ones((), dtype=torch.bool)))
    return config, tokenizer.eval()


def plan(
    checkpoint: Checkpoint, kind: str, *, prefix: str = "", image_size: int = 256, depth: int | None = None
) -> tuple[dict, PixelTokenizer, list]:
    """The config of a VQGAN, its tokenizer without weights, and the rules for its keys.

    kind: ``taming``, ``rqvae``, ``llamagen`` (Janus's own layout too, with ``prefix``) or ``janus`` (transformers'
    layout). image_size: side of the square input, in pixels; the networks take any multiple of their stride. depth: the
    code depth of an RQ-VAE whose shared codebook was saved once. Raises ``ValueError`` if sizes are not known.
    """
    keys = [key.removeprefix(prefix) for key in checkpoint.keys() if key.startswith(prefix)]
    arch = architecture(checkpoint, keys, kind, prefix, depth)
    theirs = re.escape(prefix)
    rules = [
        *(Rule(theirs + rule.pattern, rule.to, rule.how) for rule in used(kind, len(arch["channel_multiplier"]))),
        *(Ignored(theirs + rule.pattern, rule.why) for rule in IGNORED + (OF_RQVAE if kind == "rqvae" else [])),
        Ignored(rf"(?!{theirs}).*" if prefix else r"(?!)", "not the VQGAN's"),
    ]
    config = dict(type="PixelTokenizer", image_size=image_size)
    return config, PixelTokenizer(image_size=image_size, arch=arch), rules


OF_RQVAE = [
    Ignored(r"quantizer\.codebooks\.\d+\.weight", "a copy of the shared codebook"),
    Ignored(r"quantizer\.codebooks\.\d+\.(cluster_size_ema|embed_ema)", "moving averages of the codebook's training"),
]
IGNORED = [
    Ignored(r"quantize\.(embedding\.)?(cluster_size|embed_avg)", "moving averages of the codebook's training"),
    Ignored(r"quantize\.codebook_used", "which codes the last training steps used"),
    Ignored(r"loss\..*", "the discriminator and the perceptual loss"),
]


def used(kind: str, levels: int) -> list[Rule]:
    """Rules from the keys of a kind (without prefix) to `PixelTokenizer`'s."""
    same = r"(quant_conv|post_quant_conv|(?:encoder|decoder)\.(?:conv_in|norm_out|conv_out))\.(weight|bias)"
    rules = [Rule(same, r"model.\1.\2")]
    if kind == "rqvae":
        rules.append(Rule(r"quantizer\.codebooks\.0\.weight", f"model.{CODEBOOK}", drop_padding))
    else:
        rules.append(Rule(re.escape(CODEBOOK), f"model.{CODEBOOK}"))
    if kind == "llamagen":
        return [
            *rules,
            Rule(r"(encoder|decoder)\.mid\.([012])\.(.*)", lambda m: f"model.{m[1]}.mid.{MIDDLE[int(m[2])]}.{m[3]}"),
            Rule(r"encoder\.conv_blocks\.(\d+)\.res\.(.*)", r"model.encoder.down.\1.block.\2"),
            Rule(r"encoder\.conv_blocks\.(\d+)\.((?:attn|downsample)\..*)", r"model.encoder.down.\1.\2"),
            Rule(r"decoder\.conv_blocks\.(\d+)\.res\.(.*)", r"model.decoder.up.\1.block.\2"),
            Rule(r"decoder\.conv_blocks\.(\d+)\.((?:attn|upsample)\..*)", r"model.decoder.up.\1.\2"),
        ]
    rules += [
        Rule(r"((?:encoder|decoder)\.mid\..*)", r"model.\1"),
        Rule(r"(encoder\.down\..*)", r"model.\1"),
    ]
    if kind == "janus":
        return [*rules, Rule(r"(decoder\.up\..*)", r"model.\1")]
    # taming's up.0 is the finest level, Janus's up.0 is the coarsest
    return [*rules, Rule(r"decoder\.up\.(\d+)\.(.*)", lambda m: f"model.decoder.up.{levels - 1 - int(m[1])}.{m[2]}")]


def architecture(checkpoint: Checkpoint, keys: list[str], kind: str, prefix: str, depth: int | None) -> dict:
    """`PixelTokenizer`'s ``arch``, from the tensors. Raises ``ValueError`` if a needed tensor is missing."""
    level = r"encoder\.conv_blocks\.(\d+)\." if kind == "llamagen" else r"encoder\.down\.(\d+)\."
    block = "res" if kind == "llamagen" else "block"
    levels = 1 + max((int(m[1]) for key in keys if (m := re.match(level, key))), default=-1)
    if levels == 0:
        raise ValueError(f"{checkpoint.path} does not fit: missing: {prefix}encoder's blocks")
    folder = "encoder.conv_blocks" if kind == "llamagen" else "encoder.down"

    def rows(key: str) -> int:
        return checkpoint.rows(prefix + key)

    base = rows("encoder.conv_in.weight")
    widths = [rows(f"{folder}.{i}.{block}.0.conv1.weight") for i in range(levels)]
    attention = sorted({int(m[1]) for key in keys if (m := re.match(level + r"attn\.", key))})
    codebook = CODEBOOK
    own = dict(unit_vectors=kind in ("llamagen", "janus"), depth=1)
    if kind == "rqvae":
        codebook = "quantizer.codebooks.0.weight"
        own["depth"] = residual_depth(checkpoint, prefix, depth)
    elif depth not in (None, 1):
        raise ValueError(f"{checkpoint.path}: depth {depth} of a VQGAN that has one code a grid cell")
    return dict(
        base_channels=base,
        channel_multiplier=[width // base for width in widths],
        num_res_blocks=len({m[1] for key in keys if (m := re.match(rf"{folder}\.0\.{block}\.(\d+)\.", key))}),
        latent_channels=rows("encoder.conv_out.weight"),
        embed_dim=rows("quant_conv.weight"),
        num_embeddings=rows(codebook) - (kind == "rqvae"),
        attention_levels=None if attention == [levels - 1] else attention,
        **own,
    )


def residual_depth(checkpoint: Checkpoint, prefix: str, depth: int | None) -> int:
    """The code depth of an RQ-VAE, see `codebook_sizes`. Raises ``ValueError`` if its codebooks differ, because
    `PixelTokenizer` has a single codebook."""
    sizes = codebook_sizes(
        checkpoint, f"{prefix}quantizer.", _stated_depth(checkpoint.path) if depth is None else depth
    )
    if sizes["depth"] > 1 and not sizes["shared"]:
        raise ValueError(
            f"{checkpoint.path}: its {sizes['depth']} codebooks differ; only one that all levels share can be imported"
        )
    return sizes["depth"]


def _stated_depth(path: Path) -> int | None:
    """The depth that ``config.yaml`` of kakaobrain's releases states, or None."""
    file = (path if path.is_dir() else path.parent) / "config.yaml"
    if not file.is_file():
        return None
    try:
        shape = yaml.safe_load(file.read_text(encoding="utf-8"))["arch"]["hparams"]["code_shape"]
        return int(shape[2])
    except (yaml.YAMLError, KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{file}: expected arch.hparams.code_shape with three numbers") from error
