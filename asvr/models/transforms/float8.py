"""Matrix products in 8-bit floating point."""

from dataclasses import replace

import torch
from torch import nn

from asvr.models.transforms.layers import linear_layers, plain_linear, replace_layer
from asvr.registry import MODEL_TRANSFORMS

RECIPES = dict(rowwise=(9, 0), tensorwise=(8, 9), rowwise_with_gw_hp=(9, 0))  # torchao's, with the CUDA capability
MULTIPLE = 16  # of both sizes of a weight, for CUDA's kernels


@MODEL_TRANSFORMS.register_module()
class Float8:
    """Matrix products of linear layers in 8-bit floating point, forward and backward (``torchao.float8``).

    Weights, gradients, the optimiser's state and checkpoints are the same as without it.

    layers: patterns of names, as in `Lora`.
    recipe: how numbers are scaled to 8 bits. ``rowwise``: with a factor for each row. ``tensorwise``: with one factor
        for the whole tensor, which is faster. Samples of a micro-batch then change each other's rounding, so it cannot
        be used with ``data.pack``. ``rowwise_with_gw_hp``: as rowwise, but the gradients of weights are computed in
        full precision.
    emulate: round to 8 bits, but multiply in full precision. It runs on any device, and is slower than no transform.

    Raises ``ValueError`` if torchao is missing, for an unknown recipe, if a pattern matches no linear layer, or if a
    size of a layer is not a multiple of 16 (unless ``emulate``).
    """

    def __init__(self, *, layers: list[str], recipe: str = "rowwise", emulate: bool = False):
        if recipe not in RECIPES:
            raise ValueError(f"Float8 recipe={recipe!r}: expected one of {', '.join(RECIPES)}")
        self.layers, self.recipe, self.emulate = list(layers), recipe, emulate
        self._changed: dict[str, list[str]] = {}  # names of layers by component

    def require_device(self, device: torch.device) -> None:
        needed = RECIPES[self.recipe]
        if self.emulate or (device.type == "cuda" and torch.cuda.get_device_capability(device) >= needed):
            return
        raise ValueError(
            f"model_transforms: Float8 with recipe={self.recipe!r} needs a CUDA device of capability "
            f"{needed[0]}.{needed[1]} or higher, but runtime.device is {device}: leave it out, or set emulate=True, "
            "which rounds in the same way but is slow"
        )

    def __call__(self, model: nn.Module) -> None:
        float8 = _torchao_float8()
        config = float8.Float8LinearConfig.from_recipe_name(self.recipe)
        config = replace(config, emulate=self.emulate, pad_inner_dim=True)  # any number of tokens in a micro-batch
        parts = model.components()
        for name, layers in linear_layers(model, self.layers, "Float8").items():
            for key, layer in layers.items():
                if not self.emulate and any(size % MULTIPLE for size in layer.weight.shape):
                    sizes = " x ".join(map(str, layer.weight.shape))
                    raise ValueError(
                        f"Float8: {name}.{key} is {sizes}, but both sizes must be multiples of {MULTIPLE}: name other "
                        "layers"
                    )
            chosen = set(layers)
            float8.convert_to_float8_training(
                parts[name], module_filter_fn=lambda layer, key, chosen=chosen: key in chosen, config=config
            )
            self._changed[name] = list(layers)

    def merge(self, model: nn.Module) -> None:
        """Replace the layers by plain linear layers with the same weights."""
        for name, keys in self._changed.items():
            part = model.components()[name]
            for key in keys:
                layer = part.get_submodule(key)
                replace_layer(part, key, plain_linear(layer.weight, layer.bias))
        self._changed.clear()


def _torchao_float8():
    try:
        from torchao import float8
    except ImportError as error:
        raise ValueError(f"model_transforms: Float8 needs torchao ({error}): pip install torchao") from error
    return float8
