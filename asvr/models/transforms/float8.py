"""Matrix products in 8-bit floating point."""

from collections.abc import Iterator
from contextlib import contextmanager
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

    Weights, gradients, the optimiser's state and checkpoints are the same as without it. Only training multiplies in 8
    bits: a model that answers questions has plain layers, in a run too.

    layers: patterns of names, as in `Lora`.
    recipe: how numbers are scaled to 8 bits. ``rowwise``: with a scale for each row. ``tensorwise``: with one scale
        for the whole tensor, which is faster. Samples of a micro-batch then change each other's rounding, so it cannot
        be used with ``data.pack``. ``rowwise_with_gw_hp``: as rowwise, but the gradients of weights are computed in
        full precision.
    fsdp_float8_all_gather: with ``parallel.type='FSDP2'``, gather the layers of the LLM's blocks in 8 bits, which is a
        quarter of float32's bytes. Their weights have one scale for the whole tensor, with any recipe. Other layers
        are gathered as without it.
    emulate: round to 8 bits, but multiply in full precision. It runs on any device, and is slower than no transform.

    Raises ``ValueError`` if torchao is missing, for an unknown recipe, if a pattern matches no linear layer, if a size
    of a layer is not a multiple of 16 (unless ``emulate``), or if ``fsdp_float8_all_gather`` finds no layer of a block.
    """

    def __init__(
        self,
        *,
        layers: list[str],
        recipe: str = "rowwise",
        fsdp_float8_all_gather: bool = False,
        emulate: bool = False,
    ):
        if recipe not in RECIPES:
            raise ValueError(f"Float8 recipe={recipe!r}: expected one of {', '.join(RECIPES)}")
        self.layers, self.recipe, self.emulate = list(layers), recipe, emulate
        self.fsdp_float8_all_gather = fsdp_float8_all_gather
        self._changed: dict[str, list[str]] = {}  # names of layers by component
        self._converted: list[nn.Linear] = []  # torchao's layers
        self._gathered: list[nn.Linear] = []  # layers whose weights are gathered in 8 bits

    def require_device(self, device: torch.device) -> None:
        needed = RECIPES[self.recipe]
        if self.emulate or (device.type == "cuda" and torch.cuda.get_device_capability(device) >= needed):
            return
        raise ValueError(
            f"model_transforms: Float8 with recipe={self.recipe!r} needs a CUDA device of capability "
            f"{needed[0]}.{needed[1]} or higher, but runtime.device is {device}: leave it out, or set emulate=True, "
            "which rounds the same but is slow"
        )

    def require_parallel(self, kind: str | None) -> None:
        if self.fsdp_float8_all_gather and kind != "FSDP2":
            found = "`parallel` is not set" if kind is None else f"parallel.type={kind!r}"
            raise ValueError(
                f"model_transforms: Float8 with fsdp_float8_all_gather=True needs parallel.type='FSDP2', but {found}: "
                "leave fsdp_float8_all_gather out, or set parallel.type"
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
            in_blocks = self._in_blocks(model, layers) if self.fsdp_float8_all_gather else set()
            for chosen, own in ((layers.keys() - in_blocks, config), (in_blocks, _one_scale_a_weight(float8, config))):
                float8.convert_to_float8_training(
                    parts[name], module_filter_fn=lambda layer, key, chosen=chosen: key in chosen, config=own
                )
            self._converted += [parts[name].get_submodule(key) for key in layers]
            self._gathered += [parts[name].get_submodule(key) for key in layers if key in in_blocks]
            self._changed[name] = list(layers)
        if self.fsdp_float8_all_gather and not self._gathered:
            raise ValueError(
                "Float8: fsdp_float8_all_gather=True gathers layers of the LLM's blocks, and layers="
                f"{self.layers} names none: leave it out, or name such layers"
            )

    def _in_blocks(self, model: nn.Module, layers: dict[str, nn.Linear]) -> set[str]:
        """The names of the layers that are in blocks of the LLM."""
        blocks = {id(module) for block in getattr(model.llm, "blocks", ()) for module in block.modules()}
        return {key for key, layer in layers.items() if id(layer) in blocks}

    def before_sharding(self, model: nn.Module, whole: list[nn.Parameter], shards: int) -> None:
        """Let FSDP2 cast the shards of the weights to 8 bits before it gathers them.

        whole: weights that it will not shard. shards: the number of shards of each weight. Raises ``ValueError`` if it
        does not divide the rows of a weight: FSDP2 does not pad what it gathers in 8 bits."""
        from torchao.float8.fsdp_utils import WeightWithDynamicFloat8CastTensor

        if self._gathered and model.compute_device is not None:
            raise ValueError(
                "Float8: fsdp_float8_all_gather=True does not work with parallel.cpu_offload, which loses the "
                "scales of the weights: leave one of them out"
            )
        whole = {id(parameter) for parameter in whole}
        for layer in self._gathered:
            weight = layer.weight
            if id(weight) not in whole and weight.shape[0] % shards:
                raise ValueError(
                    f"Float8: fsdp_float8_all_gather=True needs weights whose rows can be shared evenly, but one has "
                    f"{weight.shape[0]} rows for {shards} shards: leave it out, or set parallel.shard"
                )
            if id(weight) not in whole:
                dtype = layer.config.cast_config_weight.target_dtype
                cast = WeightWithDynamicFloat8CastTensor(weight.detach(), layer.linear_mm_config, dtype)
                layer.weight = nn.Parameter(cast, requires_grad=weight.requires_grad)

    def after_step(self, model: nn.Module) -> None:
        """Compute the scales of all gathered weights in one exchange. Otherwise there would be one for each weight."""
        if self._gathered:
            _torchao_float8().precompute_float8_dynamic_scale_for_fsdp(model)

    @contextmanager
    def without(self, model: nn.Module) -> Iterator[None]:
        """Inside the block, the layers are plain linear layers with the same weights, as after `merge`.

        (torchao 0.18 fails in inference mode.) Weights that are gathered in 8 bits are the rounded ones."""
        found = [
            (parent, name, layer)
            for parent in model.modules()
            for name, layer in parent.named_children()
            if id(layer) in {id(own) for own in self._converted}
        ]
        for parent, name, layer in found:
            setattr(parent, name, plain_linear(_in_full_precision(layer.weight), layer.bias))
        try:
            yield
        finally:
            for parent, name, layer in found:
                setattr(parent, name, layer)

    def merge(self, model: nn.Module) -> None:
        """Replace the layers by plain linear layers with the same weights."""
        for name, keys in self._changed.items():
            part = model.components()[name]
            for key in keys:
                layer = part.get_submodule(key)
                replace_layer(part, key, plain_linear(layer.weight, layer.bias))
        self._changed.clear()
        self._converted.clear()
        self._gathered.clear()


def _one_scale_a_weight(float8, config):
    """The config with one scale for a whole weight, which each process can apply to its own part."""
    cast = replace(config.cast_config_weight, scaling_granularity=float8.ScalingGranularity.TENSORWISE)
    return replace(config, cast_config_weight=cast, cast_config_weight_for_grad_input=cast)


def _in_full_precision(weight: nn.Parameter) -> nn.Parameter:
    """The weight itself, or a copy of one that FSDP2 has gathered in 8 bits."""
    if not hasattr(weight, "to_original_precision"):
        return weight
    with torch.no_grad():
        return nn.Parameter(weight.detach().to_original_precision(), requires_grad=weight.requires_grad)


def _torchao_float8():
    try:
        from torchao import float8
    except ImportError as error:
        raise ValueError(f"model_transforms: Float8 needs torchao ({error}): pip install torchao") from error
    return float8
