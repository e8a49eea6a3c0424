"""FLOPs of the forward pass by formula, to check the counts of `asvr.flops.count`.

A product of (m, k) and (k, n) is ``2 m k n`` FLOPs. For one sample with ``T`` tokens, ``N`` of them visual:

- LLM block (width ``H``, inner ``F``, ``M`` heads of ``K``, ``G`` key heads; a layer may have its own):
  ``2 T H (2 M K + 2 G K) + 6 T H F + 4 T^2 M K``; all pairs of tokens, causal or not
- LM head (``S`` supervised positions, vocabulary ``V``): ``2 S H V``
- block of a vision tower (width ``E``, inner ``F``): ``8 N E^2 + 4 N E F + 4 N^2 E``; patches of ``p`` pixels:
  ``2 N 3 p^2 E``
- projector: ``2 N (E H + H^2)``
- depth transformer (width ``W``, ``D`` depths, ``P`` positions), a layer: ``P D (8 W^2 + 8 W^2) + 4 P D^2 W``; its
  inputs ``2 P (H W + W^2) + 2 P (D - 1) C W``; classifiers ``2 P W sum V_d``
- code search: ``2 N C sum V_d``; of product codes ``2 N (C / D) sum V_d``
"""

from torch import nn

from asvr.flops.count import Sample
from asvr.models.attention_sizes import attention_sizes, layer_configs
from asvr.models.encoders import HFVisionEncoder
from asvr.models.heads import DepthTransformerHead
from asvr.models.llms import HFCausalLM
from asvr.models.projectors import LinearProjector, MLPProjector
from asvr.models.targets import CodeTarget


def formulas(model: nn.Module, sample: Sample) -> dict[str, float]:
    """FLOPs by formula, with the names of `asvr.flops.count.forward_parts`. Parts without a formula are left out."""
    image = model.layout.largest()
    tokens, crops = image.num_tokens + sample.text_tokens, image.num_crops
    found = {}
    if isinstance(model.encoder, HFVisionEncoder):
        found["encoder"] = crops * vision_tower(model.encoder)
    if isinstance(model.llm, HFCausalLM) and (blocks := llm_blocks(model.llm, tokens)) is not None:
        found["LLM blocks"] = blocks
    layers = [module for module in model.projector.modules() if isinstance(module, nn.Linear)]
    if isinstance(model.projector, LinearProjector | MLPProjector):
        products = sum(layer.in_features * layer.out_features for layer in layers)
        found["projector"] = 2 * crops * model.encoder.num_tokens * products
    if isinstance(model.llm.lm_head, nn.Linear):
        classes = model.text_classifier().out_features
        found["LM head"] = 2 * sample.text_tokens * model.llm.lm_head.in_features * classes
    for target in (target for target in model.targets if isinstance(target, CodeTarget)):
        positions, cells = target.positions.per_image, crops * target.tokenizer.num_tokens
        sizes, width = target.tokenizer.codebook_sizes, target.tokenizer.code_width
        searched = getattr(getattr(target.tokenizer, "quantizer", None), "book_width", width)
        found[f"tokenizer {target.name}: code search"] = 2 * cells * searched * sum(sizes)
        if isinstance(target.head, DepthTransformerHead):
            body, classifiers = depth_transformer(target.head, positions, model.llm.hidden_size, width, sizes)
            found[f"head {target.name}"] = crops * body
            found[f"classifiers {target.name} (depth {len(sizes)})"] = crops * classifiers
    return found


def llm_blocks(llm: HFCausalLM, tokens: int) -> float | None:
    """FLOPs of the blocks. None: their weights are not those of the formula, as with experts or adapters."""
    config = llm.model.config
    layers, attention = layer_configs(config), attention_sizes(config)
    inner = [getattr(layer, "intermediate_size", None) for layer in layers]
    if len(attention) != len(layers) or not all(isinstance(size, int) for size in inner):
        return None
    weights = sum(
        config.hidden_size * (own.heads + own.key_heads) * (own.width + own.value_width) + 3 * config.hidden_size * size
        for own, size in zip(attention, inner, strict=True)
    )
    if weights != sum(p.numel() for block in llm.blocks for p in block.parameters() if p.ndim > 1):
        return None
    pairs = sum(own.heads * (own.width + own.value_width) for own in attention)
    return 2 * tokens * weights + 2 * tokens**2 * pairs


def vision_tower(encoder: HFVisionEncoder) -> float:
    """FLOPs of a vision tower. Only the blocks that are kept count."""
    config, tokens = encoder.model.config, encoder.num_tokens
    width, inner = config.hidden_size, config.intermediate_size
    blocks = sum(1 for key in encoder.model.state_dict() if key.endswith("layer_norm1.weight"))
    block = 8 * tokens * width**2 + 4 * tokens * width * inner + 4 * tokens**2 * width
    return blocks * block + 2 * tokens * 3 * encoder.patch**2 * width


def depth_transformer(head, positions: int, hidden: int, code: int, sizes: list[int]) -> tuple[float, float]:
    width, depth = head.code_input.out_features, len(sizes)
    inputs = 2 * positions * (hidden * width + width**2) + 2 * positions * (depth - 1) * code * width
    layer = 16 * positions * depth * width**2 + 4 * positions * depth**2 * width
    return inputs + len(head.layers) * layer, 2 * positions * width * sum(sizes)
