"""Sizes of the attention of a transformers model, layer by layer.

Layers may differ: Gemma 4 has wider heads in its global layers than in its sliding ones. transformers then refuses to
read such a field from the whole configuration.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionSizes:
    """Sizes of one layer. heads: of the query. key_heads: of keys and values. width: of a head of query and key.
    value_width: of a head of the value, which differs in multi-head latent attention."""

    heads: int
    key_heads: int
    width: int
    value_width: int


def layer_configs(config) -> list:
    """The configuration of each layer of a language model. config: its own, or that of a model which contains it."""
    text = _text_config(config)
    if getattr(text, "is_heterogeneous", False):
        return list(text.per_layer_config)
    return [text] * getattr(text, "num_hidden_layers", 1)


def attention_sizes(config) -> list[AttentionSizes]:
    """The sizes of each layer's attention. Empty for a model without attention heads, such as Mamba."""
    found = [_sizes(layer) for layer in layer_configs(config)]
    return [sizes for sizes in found if sizes is not None]


def head_widths(config) -> list[tuple[int, int]]:
    """All widths of heads that occur in a language model, as (query and key, value), the narrowest first."""
    found = {(sizes.width, sizes.value_width) for sizes in attention_sizes(config)}
    wide = getattr(_text_config(config), "global_head_dim", None)  # of Gemma 4 in versions without fields by layer
    return sorted(found | ({(wide, wide)} if wide else set()))


def _text_config(config):
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _sizes(layer) -> AttentionSizes | None:
    heads = getattr(layer, "num_attention_heads", None)
    if not heads:
        return None
    # With latent attention, `head_dim` is the width of the rotated part alone.
    rotated, rest = getattr(layer, "qk_rope_head_dim", None), getattr(layer, "qk_nope_head_dim", None)
    latent = rotated + rest if rotated is not None and rest is not None else None
    width = latent or getattr(layer, "head_dim", None) or layer.hidden_size // heads
    return AttentionSizes(
        heads=heads,
        key_heads=getattr(layer, "num_key_value_heads", None) or heads,
        width=width,
        value_width=getattr(layer, "v_head_dim", None) or width,
    )
