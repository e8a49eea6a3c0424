"""Import of tokenizers of DualToken (github.com/songweii/DualToken), also from released ASVR checkpoints."""

import re
from dataclasses import dataclass

from asvr.base.checkpoint_files import Checkpoint
from asvr.interchange.codebooks import codebook_rules, codebook_sizes, uniform_shares
from asvr.interchange.rules import Ignored, Rule, translate
from asvr.interchange.siglip import tower_arch, tower_rules
from asvr.models.tokenizers.semantic import SemanticTokenizer


@dataclass(frozen=True)
class Branch:
    """A branch of DualToken.

    layer: the tower's layer, as in ``hidden_states``. quantizer, before, after: names of its parts, without the dot.
    config: its entry of ``rqvaesiglip`` in ``config.json``, if it has one. pixels: whether it has the decoder.
    """

    layer: int
    quantizer: str
    before: str
    after: str
    config: str | None = None
    pixels: bool = False


GENERATIONS = {
    "ab": dict(
        semantic=Branch(-2, "quantizer_semantic", "prequant_semantic", "postquant_semantic"),
        appearance=Branch(6, "quantizer", "prequant_visual", "postquant_visual", pixels=True),
    ),
    "d": dict(
        semantic=Branch(26, "quantizer_sem", "prequant_sem", "postquant_sem", "vq_sem"),
        appearance=Branch(6, "quantizer_pix", "prequant_pix", "postquant_pix", "vq_pix", pixels=True),
    ),
}
SHORTCUT = "prequant_shortcut"
# The layer and the weight of generation D's shortcut in the release, for checkpoints without a config.json.
SHORTCUT_LAYER, SHORTCUT_WEIGHT = 4, 0.6
IGNORED = [
    (r"siglip_model\.(text_model\..*|logit_\w+)", "SigLIP's text side"),
    (r"(decoder|post_quant_conv)\..*", "turns appearance codes into pixels"),
    (r"postquant_\w+\..*", "turns codes back into features, for training or for pixels"),
    (r"(prequant|quantizer)\w*\..*", "the other branch"),
]


def import_dualtoken(checkpoint: Checkpoint, branch: str, **options) -> tuple[dict, SemanticTokenizer]:
    """The config and the tokenizer of one branch, see `plan`. Raises ``ValueError`` with all keys that do not fit."""
    config, tokenizer, keys = plan(checkpoint, branch, **options)
    expected = tokenizer.state_dict()
    tensors = translate(checkpoint, keys, expected, made=[r".*\.share"])
    tokenizer.load_state_dict(tensors | uniform_shares(expected, "quantizer."))
    return config, tokenizer.eval()


def plan(
    checkpoint: Checkpoint,
    branch: str,
    *,
    generation: str = "ab",
    prefix: str = "",
    name: str = "",
    num_heads: int | None = None,
    depth: int | None = None,
) -> tuple[dict, SemanticTokenizer, list]:
    """The config of one branch of DualToken, its tokenizer without weights, and the rules for its keys.

    branch: ``semantic`` or ``appearance``. The semantic branch reads layer 26. Its features are projected to 256 in
    generation A and to 32 in D, and not projected in B. The appearance branch reads layer 6, in D layer 4 too, and
    projects them. Its codes can be turned into pixels. generation: ``ab`` or ``d``. prefix: of the keys. name,
    num_heads: see `tower_arch`. depth: the code depth, if the shared codebook was saved once and no ``config.json``
    states the depth. Raises ``ValueError`` if sizes are not known.
    """
    branches = GENERATIONS[generation]
    if branch not in branches:
        raise ValueError(f"branch {branch!r}: expected one of {', '.join(branches)}")
    parts, stated = branches[branch], _stated(checkpoint, generation)
    tower = f"{prefix}siglip_model.vision_model."
    encoder = dict(type="HFVisionEncoder", layer=parts.layer, arch=tower_arch(checkpoint, tower, name, num_heads))
    own = stated.get(parts.config, {}) if parts.config else stated
    code_shape = own.get("code_shape", [None])
    sizes = codebook_sizes(checkpoint, f"{prefix}{parts.quantizer}.", code_shape[-1] if depth is None else depth)
    projection = projection_config(checkpoint, f"{prefix}{parts.before}.")
    if generation == "d" and parts.pixels and checkpoint.has(f"{prefix}{SHORTCUT}."):
        if projection is None:
            raise ValueError(f"{checkpoint.path} does not fit: missing: {prefix}{parts.before}.*")
        encoder["layer"] = [parts.layer, stated.get("layer_shortcut", SHORTCUT_LAYER)]
        projection["shortcut"] = stated.get("weight_shortcut", SHORTCUT_WEIGHT)
    config = dict(type="SemanticTokenizer", **sizes, projection=projection, encoder=encoder)
    if parts.pixels and (checkpoint.has(f"{prefix}decoder.") or checkpoint.has(f"{prefix}post_quant_conv.")):
        size = stated.get("decoder_latent_shape")
        config["decoder"] = decoder_config(checkpoint, prefix, parts.after, size, encoder["arch"]["image_size"])
    tokenizer = SemanticTokenizer(**{key: value for key, value in config.items() if key != "type"})
    return config, tokenizer, rules(prefix, parts, config, tokenizer)


def rules(prefix: str, parts: Branch, config: dict, tokenizer: SemanticTokenizer) -> list:
    """Rules from the keys of a DualToken checkpoint to the tokenizer of this branch."""
    theirs, tower = re.escape(prefix), f"{prefix}siglip_model.vision_model."
    main = "projection.main." if (config["projection"] or {}).get("shortcut") else "projection."
    found = [
        *tower_rules(tower, "own_encoder.model.", tokenizer.encoder.model),
        *codebook_rules(f"{prefix}{parts.quantizer}.", "quantizer.", config["shared"]),
        Rule(rf"{theirs}{parts.before}\.(.*)", rf"{main}\1"),
    ]
    if config["projection"] and "shortcut" in config["projection"]:
        found.append(Rule(rf"{theirs}{SHORTCUT}\.(.*)", r"projection.shortcut.\1"))
    if "decoder" in config:
        coarsest = len(config["decoder"]["channel_multiplier"]) - 1
        found += [
            Rule(rf"{theirs}{parts.after}\.(.*)", r"decoder.projection.\1"),
            Rule(rf"{theirs}post_quant_conv\.(.*)", r"decoder.input.\1"),
            # their up.0 is the finest level, Janus's up.0 is the coarsest
            Rule(rf"{theirs}decoder\.up\.(\d+)\.(.*)", lambda m: f"decoder.decoder.up.{coarsest - int(m[1])}.{m[2]}"),
            Rule(rf"{theirs}decoder\.(.*)", r"decoder.decoder.\1"),
        ]
    found += [Ignored(theirs + pattern, why) for pattern, why in IGNORED]
    return [*found, Ignored(rf"(?!{theirs}).*" if prefix else r"(?!)", "not the tokenizer's")]


def projection_config(checkpoint: Checkpoint, prefix: str) -> dict | None:
    """The config of the projection under ``prefix``, or None if there is none.

    Raises ``ValueError`` if a part of it is missing.
    """
    if not checkpoint.has(prefix):
        return None
    if checkpoint.has(f"{prefix}attn."):
        checkpoint.shape(f"{prefix}attn.qkv.weight", 2)
        return dict(type="attention", width=checkpoint.rows(f"{prefix}proj.weight"))
    return dict(type="resnet", width=checkpoint.rows(f"{prefix}conv1.weight"))


# Fields of ``rqvaesiglip`` that are read here, with a check of their values.
STATED = dict(
    code_shape=lambda v: isinstance(v, list) and v and isinstance(v[-1], int),
    decoder_latent_shape=lambda v: isinstance(v, list) and len(v) == 2 and all(isinstance(n, int) for n in v),
    layer_shortcut=lambda v: isinstance(v, int),
    weight_shortcut=lambda v: isinstance(v, int | float),
)


def _stated(checkpoint: Checkpoint, generation: str) -> dict:
    """``rqvaesiglip`` of ``config.json`` without nulls, or {} if there is none."""
    stated = (checkpoint.setting("rqvaesiglip", dict) or {}) if checkpoint.config is not None else {}
    stated = {key: value for key, value in stated.items() if value is not None}
    branches = [parts.config for parts in GENERATIONS[generation].values() if parts.config]
    for place in (stated, *(stated.get(name, {}) for name in branches)):
        wrong = [key for key, fits in STATED.items() if key in place and not fits(place[key])]
        if wrong:
            raise ValueError(f"{checkpoint.path}: config.json has {wrong[0]}={place[wrong[0]]!r} in rqvaesiglip")
    return stated


def decoder_config(
    checkpoint: Checkpoint, prefix: str, after: str, latent_size: list[int] | None, image_size: int
) -> dict:
    """The config of `FeatureDecoder`.

    latent_size: the side lengths of the decoded grid. None: the size from which an image of ``image_size`` is decoded.
    Raises ``ValueError`` if there is no such size.
    """
    pattern = re.escape(prefix) + r"decoder\.up\.(\d+)\.(block|attn)\.(\d+)\..*"
    found = {(int(m[1]), m[2], int(m[3])) for key in checkpoint.keys() if (m := re.fullmatch(pattern, key))}
    if not found:
        raise ValueError(f"{checkpoint.path} does not fit: missing: {prefix}decoder.up.*")
    levels = 1 + max(level for level, _, _ in found)
    attention = sorted({level for level, kind, _ in found if kind == "attn"})
    base = checkpoint.rows(f"{prefix}decoder.norm_out.weight")
    widths = [checkpoint.rows(f"{prefix}decoder.up.{level}.block.0.conv1.weight") for level in range(levels)]
    factor = 2 ** (levels - 1)
    if latent_size is None and image_size % factor:
        raise ValueError(
            f"{checkpoint.path}: its decoder cannot give an image of {image_size} pixels, because it enlarges {factor} "
            "times: name the tower, which has the image size in its name (--tower siglip-so400m-patch14-384), or put "
            "config.json beside the file"
        )
    projection = projection_config(checkpoint, f"{prefix}{after}.")
    if projection is None:
        raise ValueError(f"{checkpoint.path}: a decoder without {prefix}{after}")
    if projection["type"] == "attention":
        projection["causal"] = True
    return dict(
        projection=projection,
        latent_size=latent_size or [image_size // factor] * 2,
        latent_width=checkpoint.rows(f"{prefix}post_quant_conv.conv1.weight"),
        base_channels=base,
        channel_multiplier=[width // base for width in widths],
        num_res_blocks=max(number for level, kind, number in found if kind == "block" and level == 0),
        attention_levels=None if attention == [levels - 1] else attention,
    )
