"""An encoder for any timm model, through ``forward_intermediates``.

Legend: ``I`` images, ``N`` visual tokens of an image, ``E`` encoder width.
"""

import pickle
from difflib import get_close_matches
from functools import cache

import torch
from torch import Tensor

from asvr.base import hub
from asvr.base.files import unsafe_pickle
from asvr.data.transforms import ImageTransform
from asvr.models.encoders.base import Encoder
from asvr.models.hf import resolve_dtype
from asvr.registry import ENCODERS


@ENCODERS.register_module()
class TimmEncoder(Encoder):
    """A feature map of a timm model, flattened to tokens.

    model: timm's model name. weights: a weights file, a ``package:NAME`` that contains one (see ``asvr.base.hub``), or
        None for random weights.
    match: ``name``: the file has timm's keys. ``order``: the file has the same tensors in the same order, under other
        names (a port of the same network). All shapes must agree.
    layer: index of timm's intermediate features; -1 is the last. Later layers are dropped.
    image_size: side of the square input in pixels; None: the model's own. mean, std: they replace the model's own.
    dtype: dtype of the weights: ``float32``, ``bfloat16`` or ``float16``.
    """

    def __init__(
        self,
        *,
        model: str,
        weights: str | None = None,
        match: str = "name",
        layer: int = -1,
        image_size: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        dtype: str = "float32",
        load_weights: bool = True,
    ):
        super().__init__()
        import timm  # imported here: it needs a working torchvision, which other encoders do not need

        if match not in ("name", "order"):
            raise ValueError(f"TimmEncoder match={match!r}: expected 'name' or 'order'")
        if not timm.is_model(model):
            raise ValueError(f"timm has no model {model!r}; near: {get_close_matches(model, timm.list_models(), 5)}")
        own = timm.get_pretrained_cfg(model)
        side = image_size or own.input_size[-1]
        self.model = _create(model, side)
        if weights is not None and load_weights:
            _load(self.model, str(hub.require(weights, what="timm encoder weights")), match)
            self.source = weights
        count = len(self.model.feature_info) if hasattr(self.model, "feature_info") else len(self.model.blocks)
        if not -count <= layer < count:
            raise ValueError(
                f"TimmEncoder layer={layer}: {model} has {count} feature maps, 0..{count - 1} or -{count}..-1"
            )
        self.layer = layer if layer >= 0 else count + layer  # counted from the front, since pruning removes the end
        self.model.prune_intermediate_layers([self.layer], prune_norm=False, prune_head=True)
        self.model.to(resolve_dtype(dtype), memory_format=torch.channels_last)  # 3x faster on the CPU
        self.dtype = resolve_dtype(dtype)
        self.width, *grid = _feature_shape(model, side, self.layer)
        self.grid = tuple(grid)
        self.transform = ImageTransform(
            size=(side, side),
            mean=tuple(mean or own.mean),
            std=tuple(std or own.std),
            interpolation=own.interpolation or "bicubic",
        )

    @property
    def blocks(self) -> list[torch.nn.Module]:
        """The transformer blocks; for a convolutional model, its groups of blocks."""
        return list(getattr(self.model, "blocks", ()))

    def portable(self, config: dict) -> dict:
        own = self.transform
        return dict(super().portable(config), image_size=own.size[0], mean=own.mean, std=own.std)

    def forward(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.dtype).contiguous(memory_format=torch.channels_last)
        (features,) = self.model.forward_intermediates(pixels, indices=[self.layer], intermediates_only=True)
        return features.flatten(2).transpose(1, 2)


def _create(model: str, side: int) -> torch.nn.Module:
    import timm

    kwargs = dict(img_size=side) if timm.get_pretrained_cfg(model).fixed_input_size else {}
    return timm.create_model(model, pretrained=False, **kwargs)


@cache  # a run builds its encoder about 12 times, mostly on the meta device, where a forward pass is slow
def _feature_shape(model: str, side: int, layer: int) -> tuple[int, int, int]:
    """Return the width (channels), rows and columns of a feature map."""
    with torch.device("meta"):
        pixels, probe = torch.empty(1, 3, side, side), _create(model, side).eval()
        return tuple(probe.forward_intermediates(pixels, indices=[layer], intermediates_only=True)[0].shape[1:])


def _load(model: torch.nn.Module, path: str, match: str) -> None:
    """Load weights strictly, by name or by order. Raises ``ValueError`` with the first keys that do not fit."""
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        weights = load_file(path)
    else:
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise unsafe_pickle(path, error) from error
    own = model.state_dict()
    if match == "order":
        shapes = [tuple(v.shape) for v in weights.values()]
        if shapes != [tuple(v.shape) for v in own.values()]:
            raise ValueError(
                f"{path}: its tensors do not match this model's in order (it has {len(shapes)}, the model {len(own)})"
            )
        weights = dict(zip(own, weights.values(), strict=True))
    missing, extra = own.keys() - weights.keys(), weights.keys() - own.keys()
    if missing or extra:
        raise ValueError(f"{path}: missing {sorted(missing)[:5]}, unexpected {sorted(extra)[:5]}")
    model.load_state_dict(weights)
