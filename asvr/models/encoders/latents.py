"""The latents of a VAE as features: diffusers' ``AutoencoderKL``.

Legend: ``I`` images, ``N`` groups of latents of an image, ``E`` values of a group.
"""

import hashlib
import inspect
import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from asvr.base import hub
from asvr.base.log_once import log_once
from asvr.base.text import nearest
from asvr.base.weight_files import read_json, write_folder
from asvr.data.transforms import ImageTransform
from asvr.models.encoders.base import Encoder
from asvr.registry import ENCODERS

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
NEEDS = "LatentEncoder needs diffusers, which has the networks of VAEs: pip install -e '.[diffusion]'"
SCALING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")  # of the configuration


@ENCODERS.register_module()
class LatentEncoder(Encoder):
    """The latents of a VAE (diffusers' ``AutoencoderKL``), for `DenoisingTarget`.

    A latent is the mean of the VAE's posterior, shifted and scaled as the VAE's configuration says, in float32. The
    latents of ``group`` x ``group`` neighbours stand side by side: (channel, row, column) of the group.

    name: a folder with ``config.json`` and ``diffusion_pytorch_model.safetensors`` of an ``AutoencoderKL``, such as
        `save_pretrained` writes, or a model name (see ``asvr.base.hub``); None builds ``arch`` with random weights.
    subfolder: where the VAE stands in a folder of several models: ``vae`` in one of diffusers' pipelines.
    image_size: side of the square input in pixels. grid: (rows, columns) of groups in its place. A target gives its
        encoder's grid where the config has neither.
    arch: fields of ``AutoencoderKL``; a folder's own configuration wins over it. Without ``down_block_types`` and
        ``up_block_types`` there are as many plain blocks as ``block_out_channels``.

    Raises ``ValueError`` without diffusers, and where ``image_size`` is no multiple of a group's pixels.
    """

    transformers_arch = False  # whose `arch` it is, see `asvr.recipe.components`

    def __init__(
        self,
        *,
        name: str | None = None,
        subfolder: str | None = None,
        image_size: int | None = None,
        grid: tuple[int, int] | list[int] | None = None,
        group: int = 2,
        arch: dict | None = None,
        load_weights: bool = True,
    ):
        super().__init__()
        folder = None
        if name is not None:
            folder = hub.resolve_part(name, subfolder)
            if folder is None and (load_weights or not arch):
                folder = hub.require(name, what="VAE", subfolder=subfolder)
        self.model = _build(_read_config(folder, arch or {}, name))
        if folder is not None and load_weights:
            _load(self.model, folder)
            self.source = name
        self.group, config = group, self.model.config
        side = group * 2 ** (len(config.block_out_channels) - 1)
        self.grid = _grid(image_size, grid, side)
        self.width = config.latent_channels * group**2
        self.transform = ImageTransform(size=(self.grid[0] * side, self.grid[1] * side))

    def forward(self, pixels: Tensor) -> Tensor:
        """latents_INE of pixels (I, 3, h, w) in [-1, 1]."""
        return self.grouped(self.scaled(self.model.encode(pixels.float()).latent_dist.mode()))

    def scaled(self, latents: Tensor) -> Tensor:
        """Of latents (I, channels, rows, columns)."""
        shift, scale = self._scaling(latents)
        return (latents - shift) * scale

    def grouped(self, latents: Tensor) -> Tensor:
        return F.pixel_unshuffle(latents, self.group).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def decode(self, latents_INE: Tensor) -> Tensor:
        """Pixels (I, 3, h, w) in [-1, 1] of what `forward` gives."""
        latents = F.pixel_shuffle(latents_INE.float().transpose(1, 2).unflatten(2, self.grid), self.group)
        shift, scale = self._scaling(latents)
        return self.model.decode(latents / scale + shift).sample.clamp(-1, 1)

    def _scaling(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """What is taken from latents, and by what they are multiplied then."""
        config = self.model.config
        if config.latents_mean is None or config.latents_std is None:
            return config.shift_factor or 0.0, config.scaling_factor
        mean, std = (latents.new_tensor(own).view(-1, 1, 1) for own in (config.latents_mean, config.latents_std))
        return mean, config.scaling_factor / std

    def fingerprint(self) -> str:
        """Of the weights, and of what else the latents depend on."""
        own = [self.group, *(self.model.config[key] for key in SCALING)]
        return hashlib.sha256(f"{super().fingerprint()} {own}".encode()).hexdigest()[:16]

    def portable(self, config: dict) -> dict:
        known = _fields()
        arch = {k: _plain(v) for k, v in self.model.config.items() if k in known and _plain(v) != _plain(known[k])}
        own = {key: value for key, value in super().portable(config).items() if key != "subfolder"}
        return dict(own, arch=arch)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ``config.json`` and the weights, which diffusers' ``AutoencoderKL.from_pretrained`` reads too."""
        own = {key: _plain(value) for key, value in self.model.config.items() if key in _fields()}
        own = {"_class_name": type(self.model).__name__} | own
        return write_folder(folder, weights=(WEIGHTS, self.model.state_dict()), texts={CONFIG: own})


def _autoencoder() -> type:
    try:
        from diffusers import AutoencoderKL  # here: it is optional
    except ImportError as error:
        raise ValueError(f"{NEEDS} ({error})") from error
    return AutoencoderKL


def _fields() -> dict:
    """Those of ``AutoencoderKL``'s configuration, with their defaults."""
    parameters = inspect.signature(_autoencoder().__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


def _read_config(folder: Path | None, arch: dict, name: str | None) -> dict:
    known = _fields()
    if unknown := [key for key in arch if key not in known]:
        raise ValueError(
            f"LatentEncoder arch.{unknown[0]}: AutoencoderKL has no such field; {nearest(unknown[0], known)}"
        )
    if folder is None:
        return _with_blocks(arch)
    found = read_json(folder / CONFIG)
    if found.get("_class_name") != "AutoencoderKL":
        raise ValueError(
            f"{folder / CONFIG}: _class_name {found.get('_class_name')!r}, expected 'AutoencoderKL' (in a folder of "
            "several models set subfolder='vae')"
        )
    found = {key: value for key, value in found.items() if not key.startswith("_")}
    different = [key for key, value in arch.items() if _plain(found.get(key, known[key])) != _plain(value)]
    if different:
        told = ", ".join(f"{key}={found.get(key, known[key])!r} (config: {arch[key]!r})" for key in different)
        log_once(logging.WARNING, "%s: the folder %s differs from `arch`; the folder is used: %s", name, folder, told)
    return found


def _with_blocks(arch: dict) -> dict:
    levels = len(arch.get("block_out_channels", _fields()["block_out_channels"]))
    plain = dict(down_block_types="DownEncoderBlock2D", up_block_types="UpDecoderBlock2D")
    arch = {name: [block] * levels for name, block in plain.items()} | arch
    if wrong := [name for name in plain if len(arch[name]) != levels]:
        raise ValueError(f"LatentEncoder arch.{wrong[0]}: expected {levels} blocks, as many as block_out_channels")
    return arch


def _build(config: dict):
    try:
        return _autoencoder().from_config(config).float()
    except (TypeError, ValueError, ArithmeticError, IndexError) as error:
        told = " ".join(f"{error}".split())
        raise ValueError(f"LatentEncoder arch: diffusers makes no AutoencoderKL of it: {told}") from error


def _load(model, folder: Path) -> None:
    """By diffusers, which knows the names of earlier versions; strictly."""
    try:
        loaded, told = type(model).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: diffusers cannot read the VAE: {' '.join(f'{error}'.split())[:300]}") from error
    wrong = {kind: told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if told.get(kind)}
    if wrong:
        listing = "; ".join(f"{kind.replace('_', ' ')}: {list(keys)[:3]}" for kind, keys in wrong.items())
        raise ValueError(f"{folder / WEIGHTS}: does not hold this VAE's weights: {listing}")
    model.load_state_dict(loaded.state_dict())


def _grid(image_size: int | None, grid, side: int) -> tuple[int, int]:
    """side: pixels of a group."""
    if (image_size is None) == (grid is None):
        raise ValueError("LatentEncoder: give image_size (the side in pixels) or grid (rows, columns), one of them")
    if grid is not None:
        return tuple(grid)
    if image_size < 1 or image_size % side:
        near = max(1, round(image_size / side)) * side
        raise ValueError(f"LatentEncoder image_size={image_size}: expected a multiple of {side}, such as {near}")
    return (image_size // side, image_size // side)


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
