"""An encoder whose features are the latents of a VAE, diffusers' ``AutoencoderKL``.

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
NEEDS = "LatentEncoder needs diffusers, which has the networks of VAEs: pip install 'asvr[diffusion]'"
SCALING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")  # of the configuration


@ENCODERS.register_module()
class LatentEncoder(Encoder):
    """The latents of a VAE (diffusers' ``AutoencoderKL``), for `DenoisingTarget`.

    A latent is the mean of the VAE's posterior, shifted and scaled as the VAE's configuration says, in float32. The
    latents of ``group`` x ``group`` neighbours are concatenated, in the order (channel, row, column) of the group.

    name: a folder with ``config.json`` and ``diffusion_pytorch_model.safetensors`` of an ``AutoencoderKL``, such as
        `save_pretrained` writes, or a model name (see ``asvr.base.hub``). None builds ``arch`` with random weights.
    subfolder: the VAE's subfolder in a folder of several models: ``vae`` in diffusers' pipelines.
    image_size: side of the square input in pixels. grid: (rows, columns) of groups, in place of image_size. If the
        config has neither, a target gives the grid of its encoder. group: side of a group in latents.
    arch: fields of ``AutoencoderKL``. If there is a folder, its configuration is used. The defaults of
        ``down_block_types`` and ``up_block_types`` are plain blocks, as many as ``block_out_channels``.

    Raises ``ValueError`` if diffusers is missing, or if ``image_size`` is not a multiple of a group's pixels.
    """

    transformers_arch = False  # `arch` has fields of diffusers, see `asvr.recipe.components`

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
        """Return latents_INE of pixels (I, 3, h, w) in [-1, 1]."""
        return self.grouped(self.scaled(self.model.encode(pixels.float()).latent_dist.mode()))

    def scaled(self, latents: Tensor) -> Tensor:
        """Return shifted and scaled latents (I, channels, rows, columns)."""
        shift, scale = self._scaling(latents)
        return (latents - shift) * scale

    def grouped(self, latents: Tensor) -> Tensor:
        return F.pixel_unshuffle(latents, self.group).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def decode(self, latents_INE: Tensor) -> Tensor:
        """Return pixels (I, 3, h, w) in [-1, 1] from the output of `forward`."""
        latents = F.pixel_shuffle(latents_INE.float().transpose(1, 2).unflatten(2, self.grid), self.group)
        shift, scale = self._scaling(latents)
        return self.model.decode(latents / scale + shift).sample.clamp(-1, 1)

    def _scaling(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Return the shift that is subtracted from latents, and the scale by which they are then multiplied."""
        config = self.model.config
        if config.latents_mean is None or config.latents_std is None:
            return config.shift_factor or 0.0, config.scaling_factor
        mean, std = (latents.new_tensor(own).view(-1, 1, 1) for own in (config.latents_mean, config.latents_std))
        return mean, config.scaling_factor / std

    def fingerprint(self) -> str:
        """Return a fingerprint of the weights and of the fields on which the latents depend."""
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
        from diffusers import AutoencoderKL  # imported here, because it is optional
    except ImportError as error:
        raise ValueError(f"{NEEDS} ({error})") from error
    return AutoencoderKL


def _fields() -> dict:
    """Return the fields of ``AutoencoderKL``'s configuration, with their defaults."""
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
        listing = ", ".join(f"{key}={found.get(key, known[key])!r} (config: {arch[key]!r})" for key in different)
        log_once(
            logging.WARNING, "%s: the folder %s differs from `arch`; the folder is used: %s", name, folder, listing
        )
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
        reason = " ".join(f"{error}".split())
        raise ValueError(f"LatentEncoder arch: diffusers cannot build an AutoencoderKL from it: {reason}") from error


def _load(model, folder: Path) -> None:
    """Load weights strictly, with diffusers, which knows the names of earlier versions."""
    try:
        loaded, info = type(model).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: diffusers cannot read the VAE: {' '.join(f'{error}'.split())[:300]}") from error
    wrong = {kind: info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(kind)}
    if wrong:
        listing = "; ".join(f"{kind.replace('_', ' ')}: {list(keys)[:3]}" for kind, keys in wrong.items())
        raise ValueError(f"{folder / WEIGHTS}: the weights do not fit this VAE: {listing}")
    model.load_state_dict(loaded.state_dict())


def _grid(image_size: int | None, grid, side: int) -> tuple[int, int]:
    """Return the grid of groups. side: side of a group in pixels."""
    if (image_size is None) == (grid is None):
        raise ValueError("LatentEncoder: give either image_size (the side in pixels) or grid (rows, columns)")
    if grid is not None:
        return tuple(grid)
    if image_size < 1 or image_size % side:
        near = max(1, round(image_size / side)) * side
        raise ValueError(f"LatentEncoder image_size={image_size}: expected a multiple of {side}, such as {near}")
    return (image_size // side, image_size // side)


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
