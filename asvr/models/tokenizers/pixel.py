"""Appearance tokens: the codes of a VQGAN, which can be decoded into pixels.

Legend: ``I`` images, ``N`` visual tokens of an image, ``D`` code depth, ``V`` codes in the codebook, ``C`` code width.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusConfig, JanusVQVAE, JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEAttnBlock

from asvr.base import hub
from asvr.base.log_once import log_once
from asvr.base.precision import full_float32
from asvr.base.weight_files import load_weights as load_file
from asvr.base.weight_files import read_json, write_folder
from asvr.data.transforms import ImageTransform
from asvr.models.tokenizers.base import VisualTokenizer, has_numbers
from asvr.models.tokenizers.quantizer import nearest, soft_codes
from asvr.registry import VISUAL_TOKENIZERS

WEIGHTS, CONFIG = "model.safetensors", "config.json"
WHOLE_MODEL_PREFIX = "model.vqmodel."  # of JanusForConditionalGeneration
TRAIN_COMMAND = "asvr train-tokenizer CONFIG"
# Fields of `arch` that JanusVQVAEConfig does not have, with their values for a Janus model. attention_levels: levels of
# the encoder with attention, besides the middle; 0 is the finest. None: only the coarsest.
OWN_FIELDS = dict(depth=1, unit_vectors=True, attention_levels=None)


@VISUAL_TOKENIZERS.register_module()
class PixelTokenizer(VisualTokenizer):
    """The codes of a VQGAN, which describe pixels: VQ-16 of LlamaGen and Janus, taming-transformers, or RQ-VAE.

    It is built from the parts of transformers' ``JanusVQVAE``. LlamaGen (https://arxiv.org/abs/2406.06525), Janus,
    taming-transformers (https://arxiv.org/abs/2012.09841) and RQ-VAE (https://arxiv.org/abs/2203.01941) use this
    network. The weights of the latter two can be imported.

    The codes are looked up here, not by transformers. LlamaGen compares unit vectors (the encoder's output and the
    code, both L2-normalised), and decodes the unit code. But ``JanusVQVAE.encode`` compares raw vectors, and only
    ``decode`` normalises. With raw vectors, most codes differ from the original model's.

    image_size: side of the square input in pixels. The side of the grid is ``image_size / 2 ** (levels - 1)``, because
        the network is convolutional; ``num_patches`` of a folder is not used. VQ-16 at 432 pixels has 27 x 27 codes.
    name: a folder with ``config.json`` and ``model.safetensors`` of a ``JanusVQVAE``, such as `save_pretrained` writes,
        or of a whole Janus model, from which only the VQGAN is read (found by `asvr.base.hub`). None: random weights.
    arch: fields of ``JanusVQVAEConfig``; the defaults are VQ-16. There are three more fields. ``unit_vectors``: True
        (the default) as in LlamaGen, False as in taming-transformers and RQ-VAE. ``depth``: 1 (the default) is one code
        for each cell; more are residual codes with one codebook, as in RQ-VAE, which can be imported but not trained
        here. ``attention_levels``: see `OWN_FIELDS`. If there is a folder, its configuration is used.
    load_weights: False builds the architecture without weights.
    """

    def __init__(
        self,
        *,
        image_size: int,
        name: str | None = None,
        arch: dict | None = None,
        load_weights: bool = True,
    ):
        super().__init__()
        folder = None
        if name is not None:
            folder = hub.require(name, what="visual tokenizer") if load_weights else hub.resolve(name)
        config, own, prefix = _read_config(folder, arch or {}, name)
        factor = 2 ** (len(config.channel_multiplier) - 1)
        if image_size < 1 or image_size % factor:
            near = max(1, round(image_size / factor)) * factor
            raise ValueError(f"PixelTokenizer image_size={image_size}: expected a multiple of {factor}, such as {near}")
        config.num_patches = image_size // factor
        self.model = JanusVQVAE(config)
        if own["attention_levels"] is not None:
            for levels in (self.model.encoder.down, self.model.decoder.up[::-1]):
                place_attention(levels, config, own["attention_levels"])
        self.own_fields, self.unit_vectors = own, own["unit_vectors"]
        self.register_buffer("trained", torch.zeros((), dtype=torch.bool))  # a buffer, so that checkpoints hold it
        self._fitted = False
        self.grid = (config.num_patches, config.num_patches)
        self.codebook_sizes, self.code_width = [config.num_embeddings] * own["depth"], config.embed_dim
        self.transform = ImageTransform(size=(image_size, image_size))
        if folder is not None and load_weights:
            load_file(self.model, folder / WEIGHTS, prefix)
            self.trained.fill_(True)
            self.source = name

    @property
    def fitted(self) -> bool:
        if not self._fitted:
            self._fitted = has_numbers(self.trained) and bool(self.trained)
        return self._fitted

    def fingerprint(self) -> str:
        """Return a fingerprint of the weights and of `OWN_FIELDS`: the codes depend on both."""
        return hashlib.sha256(f"{super().fingerprint()} {sorted(self.own_fields.items())}".encode()).hexdigest()[:16]

    def codebook(self) -> Tensor:
        """Return the code vectors (V, C), as unit vectors if ``unit_vectors`` is set."""
        weight = self.model.quantize.embedding.weight
        return F.normalize(weight, dim=-1) if self.unit_vectors else weight

    def latents(self, pixels: Tensor) -> Tensor:
        """Return the encoder's vectors (I, N, C) before quantisation, as unit vectors if ``unit_vectors`` is set."""
        z = self.model.quant_conv(self.model.encoder(pixels)).flatten(2).transpose(1, 2)
        return F.normalize(z, dim=-1) if self.unit_vectors else z

    def generate(self, vectors: Tensor) -> Tensor:
        """Return pixels (I, 3, h, w), not clamped, from code vectors (I, N, C)."""
        z = vectors.transpose(1, 2).unflatten(2, self.grid)
        return self.model.decoder(self.model.post_quant_conv(z))

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return the codes (I, N, D) of pixels in [-1, 1]. Raises ``ValueError`` if the weights are random."""
        self._check(pixels)
        with full_float32(pixels.device):
            codes = [codes_P for _, codes_P in self._levels(pixels)]
        return torch.stack(codes, dim=-1).unflatten(0, (len(pixels), self.num_tokens))

    @torch.no_grad()
    def encode_soft(self, pixels: Tensor, *, temperature: float, top: int) -> tuple[Tensor, Tensor, Tensor]:
        self._check(pixels)
        codebook_VC, options = self.codebook(), dict(temperature=temperature, top=top)
        with full_float32(pixels.device):
            found = [
                (codes_P, *soft_codes(before, codes_P, codebook_VC, **options))
                for before, codes_P in self._levels(pixels)
            ]
        return tuple(
            torch.stack(part, dim=1).unflatten(0, (len(pixels), self.num_tokens)) for part in zip(*found, strict=True)
        )

    def _check(self, pixels: Tensor) -> None:
        if has_numbers(pixels) and not self.fitted:
            raise ValueError(
                "PixelTokenizer: its weights are random. Train them and name the folder: "
                f"`{TRAIN_COMMAND}`, then name='<folder>' in this tokenizer's config"
            )
        if pixels.shape[-2:] != self.transform.size:
            raise ValueError(
                f"PixelTokenizer: the pixels have the size {tuple(pixels.shape[-2:])}, expected {self.transform.size}"
            )

    def _levels(self, pixels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the residual before each level and the level's codes_P, for the cells of all images."""
        residual, codebook_VC = self.latents(pixels.float()).flatten(0, 1), self.codebook()
        for _ in self.codebook_sizes:
            codes_P = nearest(residual, codebook_VC)
            yield residual, codes_P
            residual = residual - codebook_VC[codes_P]

    def embed(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook())

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        with full_float32(codes.device):
            return self.generate(self.embed(codes).sum(-2)).clamp(-1, 1)

    def portable(self, config: dict) -> dict:
        known = JanusVQVAEConfig().to_dict()
        left_out = ("num_patches", "transformers_version", "architectures", "dtype", "model_type", "_name_or_path")
        arch = {k: v for k, v in self.model.config.to_dict().items() if k in known and k not in left_out}
        arch, known = arch | self.own_fields, known | OWN_FIELDS
        return dict(super().portable(config), arch={k: v for k, v in arch.items() if v != known[k]})

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ``config.json`` and ``model.safetensors``.

        ``JanusVQVAE.from_pretrained`` can read them too if ``attention_levels`` is None. It ignores the other
        `OWN_FIELDS`."""
        own = {key: value for key, value in self.own_fields.items() if value != OWN_FIELDS[key]}
        config = self.model.config.to_dict() | {"architectures": [JanusVQVAE.__name__]} | own
        return write_folder(folder, weights=(WEIGHTS, self.model.state_dict()), texts={CONFIG: config})


def _read_config(folder: Path | None, arch: dict, name: str | None) -> tuple[JanusVQVAEConfig, dict, str]:
    """Return the architecture, its `OWN_FIELDS`, and the prefix of its weights in the folder's file."""
    known = JanusVQVAEConfig().to_dict() | OWN_FIELDS
    unknown = sorted(arch.keys() - known.keys())
    if unknown:
        raise ValueError(f"PixelTokenizer arch: JanusVQVAEConfig has no field {unknown}; fields: {sorted(known)}")
    if "num_patches" in arch:
        raise ValueError("PixelTokenizer arch: leave num_patches out, it follows from image_size")
    if folder is None:
        return *_split(arch), ""
    found, prefix = read_json(folder / CONFIG), ""
    if found.get("model_type") == JanusConfig.model_type:
        found, prefix = found["vq_config"], WHOLE_MODEL_PREFIX
    if found.get("model_type") != JanusVQVAEConfig.model_type:
        raise ValueError(
            f"{folder / CONFIG}: model_type {found.get('model_type')!r}, "
            f"expected {JanusVQVAEConfig.model_type!r} or {JanusConfig.model_type!r}"
        )
    config, own = _split(found)
    values = config.to_dict() | own
    different = [key for key, value in arch.items() if _plain(values[key]) != _plain(value)]
    if different:
        listing = ", ".join(f"{key}={values[key]!r} (config: {arch[key]!r})" for key in different)
        log_once(
            logging.WARNING, "%s: the folder %s differs from `arch`; the folder is used: %s", name, folder, listing
        )
    return config, own, prefix


def _split(fields: dict) -> tuple[JanusVQVAEConfig, dict]:
    """Janus's configuration and our own fields."""
    own = {key: _plain(fields.get(key, default)) for key, default in OWN_FIELDS.items()}
    if own["depth"] < 1 or (own["depth"] > 1 and own["unit_vectors"]):
        raise ValueError(
            f"PixelTokenizer arch: depth={own['depth']}, unit_vectors={own['unit_vectors']}: expected depth=1, or a "
            "larger depth with unit_vectors=False (the residual of a unit vector is not one)"
        )
    config = JanusVQVAEConfig.from_dict({key: value for key, value in fields.items() if key not in OWN_FIELDS})
    levels = len(config.channel_multiplier)
    wrong = [level for level in own["attention_levels"] or [] if level not in range(levels)]
    if wrong:
        raise ValueError(f"PixelTokenizer arch.attention_levels: {wrong}; expected levels from 0 to {levels - 1}")
    return config, own


def place_attention(levels: Sequence[nn.Module], config: JanusVQVAEConfig, chosen: list[int]) -> None:
    """Give attention to the blocks of the ``chosen`` levels of an encoder or decoder, and remove it from the others.

    levels: the finest first. transformers has attention only on the coarsest level."""
    for index, (level, multiplier) in enumerate(zip(levels, config.channel_multiplier, strict=True)):
        blocks = len(level.block) if index in chosen else 0
        level.attn = nn.ModuleList(JanusVQVAEAttnBlock(config.base_channels * multiplier) for _ in range(blocks))


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
