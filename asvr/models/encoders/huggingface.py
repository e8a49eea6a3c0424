"""Vision towers of Hugging Face transformers, such as SigLIP, SigLIP2, CLIP and DINOv2.

docs/guides/models.md lists those that are tested.

Legend: ``I`` images, ``N`` visual tokens of an image, ``E`` encoder width.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel

from asvr.base import compat
from asvr.data.transforms import ImageTransform
from asvr.models.checkpointing import check_mode, settings
from asvr.models.encoders.base import Encoder
from asvr.models.hf import arch_of, build_random, find_folder, load_strict, read_config, require_tower, resolve_dtype
from asvr.registry import ENCODERS

# (mean, std, centre crop, interpolation) of each family's image processor, for folders without a preprocessor file.
_HALF, _IDENTITY = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_FAMILIES = {
    "siglip": (*_HALF, False, None),
    "clip": (*_CLIP, True, None),
    "aimv2": (*_CLIP, True, None),
    "dinov2": (*_IMAGENET, True, None),
    "dinov3": (*_IMAGENET, False, "bilinear"),
    "internvl": (*_IMAGENET, False, None),
    "depth_anything": (*_IMAGENET, False, None),
    "sam": (*_IMAGENET, False, "bilinear"),
    "radio": (*_IDENTITY, False, None),  # it normalises pixels of 0 to 1 itself
}
# Prefixes of keys in whole models that do not belong to the vision tower.
_NOT_OF_TOWERS = (
    "text_model.",
    "logit_scale",
    "logit_bias",
    "visual_projection",
    "text_projection",
    "head.",
    "vision_model.head.",
    "language_model.",
    "model.language_model.",
    "multi_modal_projector.",
    "model.multi_modal_projector.",
    "lm_head.",
    "neck.",  # of Depth Anything
    "prompt_encoder.",  # of SAM, as the next two
    "mask_decoder.",
    "shared_image_embedding.",
)
# How the keys of a tower are renamed if the file is a whole model, and transformers does not do it. InternViT is
# published in such files.
_OF_WHOLE_MODELS = {
    "internvl_vision": {r"^(model\.)?vision_tower\.": ""},
    "aimv2_vision_model": {r"^vision_model\.": ""},
    "depth_anything": {r"^backbone\.": ""},
}
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


@ENCODERS.register_module()
class HFVisionEncoder(Encoder):
    """The patch features of one layer of a Hugging Face vision tower.

    name: a folder or model name (see ``asvr.base.hub``). None builds ``arch`` with random weights.
    layer: index of the tower's ``hidden_states``, as in transformers. 0: the patch embedding. -1: the last block's
        output, before any final norm. -2 (LLaVA, ASVR): the output of the block before. Blocks after the layer are
        dropped. With a list, the features of these layers are concatenated, and ``E`` is their total width.
    arch: fields of the tower's configuration, with ``model_type``. If there is a folder, its configuration is used.
    dtype: dtype of the weights: ``float32``, ``bfloat16`` or ``float16``.
    transform: fields of ``ImageTransform`` that replace the model's own; ``size`` cannot be replaced.
    activation_checkpointing: activation checkpointing of the blocks if the encoder is trained, see
        `asvr.models.checkpointing`.

    It matches ``hidden_states[mm_vision_select_layer]`` of the released code's SigLIP tower.
    """

    interpolation = "bicubic"  # the default without a preprocessor file

    def __init__(
        self,
        *,
        name: str | None = None,
        layer: int | list[int] = -2,
        arch: dict | None = None,
        dtype: str = "float32",
        transform: dict | None = None,
        activation_checkpointing: str = "none",
        load_weights: bool = True,
    ):
        super().__init__()
        folder = find_folder(name, load_weights, "vision encoder", arch)
        config = read_config(folder, arch, name)
        family = config.model_type if hasattr(config, "backbone_config") else None  # a model that contains a tower
        config = getattr(config, "backbone_config", None) or getattr(config, "vision_config", config)
        family = family or config.model_type
        require_tower(config, name or "of `arch`")
        if config.model_type.startswith("siglip"):
            config.vision_use_head = False  # patch features do not depend on SigLIP's pooling head
        if folder is not None and load_weights:
            mapping = _OF_WHOLE_MODELS.get(family)
            self.model = load_strict(AutoModel, folder, config, resolve_dtype(dtype), _NOT_OF_TOWERS, mapping)
            self.source = name
        else:
            self.model = build_random(AutoModel, config, resolve_dtype(dtype), name or "encoder.arch")
        if check_mode(activation_checkpointing, "encoder.activation_checkpointing") != "none":
            compat.enable_activation_checkpointing(self.model, settings(activation_checkpointing))
        if not hasattr(config, "hidden_size"):
            raise ValueError(
                f"vision encoder {name or 'of `arch`'}: a {config.model_type} gives maps of several sizes instead of "
                "one grid of tokens: use type='TimmEncoder', which has such models too"
            )
        self.layer = _keep_layers(self.model, layer)
        self.width = config.hidden_size * (len(self.layer) if isinstance(self.layer, list) else 1)
        self.naflex = config.model_type == "siglip2_vision_model"
        where = name or "encoder.arch"
        self.patch = _side(config.patch_size, f"{where}: patch_size")
        if self.naflex:
            side = round(config.num_patches**0.5) * self.patch
        else:
            side = _side(config.image_size, f"{where}: image_size")
        if side < self.patch:
            raise ValueError(f"{where}: patch_size={self.patch} is larger than the image of {side} pixels")
        self.grid = (side // self.patch, side // self.patch)
        self.transform = _transform(folder, family, side, transform or {}, self.interpolation)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(next(own for own in map(_blocks, self.model.modules()) if isinstance(own, nn.ModuleList)))

    def forward(self, pixels: Tensor) -> Tensor:
        inputs = self._naflex_inputs(pixels) if self.naflex else dict(pixel_values=pixels.to(self.model.dtype))
        states = self.model(**inputs, output_hidden_states=True).hidden_states
        if states[0].ndim == 4:  # SAM's states are maps
            states = [state.flatten(1, 2) for state in states]
        hidden = torch.cat([states[i] for i in self.layer], -1) if isinstance(self.layer, list) else states[self.layer]
        if hidden.ndim != 3 or hidden.shape[1] < self.num_tokens:
            raise ValueError(
                f"vision encoder {self.model.config.model_type}: layer {self.layer} gives {tuple(hidden.shape[1:])}, "
                f"not the {self.num_tokens} tokens of a grid of {self.grid[0]} x {self.grid[1]}: use type='TimmEncoder'"
            )
        return hidden[:, -self.num_tokens :]  # class and register tokens come before the patches

    def portable(self, config: dict) -> dict:
        sizes = ("size", "patch_size", "max_num_patches")
        transform = {key: value for key, value in asdict(self.transform).items() if key not in sizes}
        return dict(super().portable(config), arch=arch_of(self.model.config), transform=transform)

    def _naflex_inputs(self, pixels: Tensor) -> dict:
        """Return the inputs of SigLIP2's NaFlex towers: patches (I, N, patch * patch * 3) and the grids.

        Nothing is padded, so there is no mask. (The tower would read it, and the CPU would wait for the device.)"""
        images, (rows, columns), p = pixels.shape[0], self.grid, self.patch
        patches = pixels.unflatten(2, (rows, p)).unflatten(4, (columns, p))  # (I, 3, rows, p, columns, p)
        patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(images, self.num_tokens, p * p * 3)
        return dict(
            pixel_values=patches.to(self.model.dtype),
            pixel_attention_mask=None,
            spatial_shapes=torch.tensor([self.grid], device="cpu").repeat(images, 1),
        )


def _keep_layers(model: nn.Module, layer: int | list[int]) -> int | list[int]:
    """Drop the blocks after ``layer`` and return its index (or indices) counted from the front."""
    parent = next((m for m in model.modules() if isinstance(_blocks(m), nn.ModuleList)), None)
    if parent is None:
        raise ValueError(
            f"{type(model).__name__} has no list of transformer blocks (`layers` or `layer`): use another encoder"
        )
    name = "layers" if isinstance(getattr(parent, "layers", None), nn.ModuleList) else "layer"
    blocks = getattr(parent, name)
    several = isinstance(layer, list)
    indices = [one if one >= 0 else len(blocks) + 1 + one for one in (layer if several else [layer])]
    if not indices or not all(0 <= index <= len(blocks) for index in indices):
        raise ValueError(
            f"encoder layer={layer}: this tower has {len(blocks)} blocks, expected {-len(blocks) - 1}..{len(blocks)}"
        )
    setattr(parent, name, blocks[: max(*indices, 1)])  # transformers records hidden states when a block runs
    return indices if several else indices[0]


def _side(size, what: str) -> int:
    """Return the side of a square. Some families (InternVL) write both sides."""
    if isinstance(size, int):
        return size
    if len(set(size)) != 1:
        raise ValueError(f"{what}={list(size)}: expected a square")
    return size[0]


def _blocks(module: nn.Module):
    return getattr(module, "layers", None) or getattr(module, "layer", None)


def _transform(folder: Path | None, model_type: str, side: int, overrides: dict, interpolation: str) -> ImageTransform:
    family = next((v for k, v in _FAMILIES.items() if model_type.startswith(k)), None)
    file = folder / "preprocessor_config.json" if folder is not None else None
    fields = dict(size=(side, side), interpolation=interpolation)
    if "size" in overrides:
        raise ValueError(
            f"transform.size={overrides['size']!r}: this tower always reads {side} x {side} pixels; leave it out"
        )
    if family is not None:
        mean, std, crop, own = family
        fields.update(mean=mean, std=std, center_crop=crop, interpolation=own or interpolation)
    if file is not None and file.is_file():
        own = json.loads(file.read_text(encoding="utf-8"))
        if own.get("do_normalize") is False:  # a tower that normalises itself
            fields.update(mean=_IDENTITY[0], std=_IDENTITY[1])
        elif "image_mean" in own:
            fields.update(mean=tuple(own["image_mean"]), std=tuple(own["image_std"]))
        if "do_center_crop" in own:
            fields.update(center_crop=bool(own["do_center_crop"]))
        if own.get("resample") in _RESAMPLE:
            fields.update(interpolation=_RESAMPLE[own["resample"]])
    elif family is None and not {"mean", "std"} <= overrides.keys():
        raise ValueError(
            f"vision tower {model_type!r}: its normalisation is unknown (no preprocessor_config.json): "
            "set transform=dict(mean=..., std=...)"
        )
    fields.update(overrides)
    return ImageTransform(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
