"""Semantic tokens: vector quantisation of a vision encoder's features.

Legend: ``I`` images, ``N`` visual tokens of an image, ``D`` code depth, ``V`` codes in a codebook, ``E`` encoder width,
``C`` code width (``E`` unless there is a projection).
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from asvr.base import hub
from asvr.base.precision import full_float32
from asvr.base.weight_files import load_weights as load_file
from asvr.base.weight_files import read_json, write_folder
from asvr.data.transforms import JoinedTransform, Pixels
from asvr.models.component import fingerprint, fingerprint_of, portable_of, source_of
from asvr.models.encoders.base import Encoder, grids_of
from asvr.models.tokenizers.base import VisualTokenizer, has_numbers
from asvr.models.tokenizers.feature_decoder import FeatureDecoder
from asvr.models.tokenizers.product import RESIDUAL, build_quantizer
from asvr.models.tokenizers.projections import build_projection
from asvr.registry import ENCODERS, VISUAL_TOKENIZERS

logger = logging.getLogger("asvr")

WEIGHTS, DESCRIPTION = "tokenizer.safetensors", "tokenizer.json"
FIT_COMMAND = "asvr train-tokenizer CONFIG"


@VISUAL_TOKENIZERS.register_module()
class SemanticTokenizer(VisualTokenizer):
    """Vector quantisation of an encoder's features, into residual or product codes.

    With residual codes it is DualToken's semantic branch (https://arxiv.org/abs/2503.14324). Unlike there, the encoder
    is not trained.

    encoder: a config: the tokenizer has its own frozen encoder. Or an `Encoder`: it is shared, and no submodule of the
        tokenizer, so that its parameters are counted and saved once.
    depth: the number of codes of a token. quantizer: ``residual``: each code describes what the codes before left over.
        ``product``: each code describes a group of channels. codebook_size, shared: see `ResidualQuantizer`.
    projection: a network before the quantiser, for imported tokenizers, see `build_projection`. A tokenizer with a
        projection cannot be fitted here.
    decoder: a decoder from codes to pixels, for imported tokenizers, see `FeatureDecoder`.
    name: a folder that `save_pretrained` has written (found by `asvr.base.hub`). Its sizes and its encoder must match.
        None: the codebooks are empty until `fit`.
    load_weights: False builds the architecture without weights.
    """

    def __init__(
        self,
        *,
        encoder: Encoder | dict,
        depth: int = 8,
        codebook_size: int | list[int] = 16384,
        shared: bool = False,
        quantizer: str = RESIDUAL,
        projection: dict | None = None,
        decoder: dict | None = None,
        name: str | None = None,
        load_weights: bool = True,
    ):
        super().__init__()
        if encoder is None:
            raise ValueError("SemanticTokenizer: `encoder` is missing: give the config of an encoder, or an Encoder")
        self.encoder_config = None
        if isinstance(encoder, Encoder):
            self._shared_encoder = (encoder,)  # in a tuple, so that it is not registered as a submodule
        else:
            self._shared_encoder = None
            self.encoder_config = dict(encoder)
            own = ENCODERS.build(encoder, default_args=dict(load_weights=load_weights))
            self.own_encoder = own.requires_grad_(False).eval()
        _require_one_size(self.encoder, projection=projection, decoder=decoder)
        width = self.encoder.width
        self.projection_config, self.projection = projection, None
        if projection is not None:
            self.projection = build_projection(projection, in_width=width, grid=self.encoder.grid)
            width = self.projection.width
        sizes = dict(depth=depth, codebook_size=codebook_size, width=width, shared=shared)
        self.quantizer, self.quantizer_name = build_quantizer(quantizer, **sizes), quantizer
        self.codebook_sizes, self.code_width = self.quantizer.sizes, width
        self.grid, self.transform = self.encoder.grid, self.encoder.transform
        several = isinstance(self.transform, JoinedTransform) or len(grids_of(self.encoder)) > 1
        if several and (projection is not None or decoder is not None):
            raise ValueError(
                "SemanticTokenizer: `projection` and `decoder` need an encoder with one image transform and one grid, "
                f"but {type(self.encoder).__name__} has several"
            )
        self.decoder_config, self.decoder = decoder, None
        if decoder is not None:
            self.decoder = FeatureDecoder(width=width, grid=self.grid, **decoder).requires_grad_(False)
        self.statistics = None
        if name is not None and load_weights:
            self._load(name)

    @property
    def encoder(self) -> Encoder:
        return self.own_encoder if self._shared_encoder is None else self._shared_encoder[0]

    @property
    def num_tokens(self) -> int:
        return self.encoder.num_tokens

    @property
    def fitted(self) -> bool:
        return self.quantizer.fitted

    @property
    def decodes(self) -> bool:
        return self.decoder is not None

    def train(self, mode: bool = True) -> "SemanticTokenizer":
        super().train(mode)
        if self._shared_encoder is None:
            self.own_encoder.eval()
        return self

    def fingerprint(self) -> str:
        """Return a fingerprint of the codebooks and of the encoder, shared or not: the codes depend on both."""
        parts = (fingerprint(self._weights()), fingerprint_of(self.encoder), str(_describe(self.encoder)))
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]

    @torch.no_grad()
    def features(self, pixels: Pixels) -> Tensor:
        """Return the encoder's features_INE as float32, computed without autocast."""
        with full_float32(self.quantizer.codebooks[0].weight.device):
            return self.encoder(pixels).float()

    def quantize(self, features_INE: Tensor) -> Tensor:
        """Return codes_IND of the encoder's features (from a cache, or shared with the model).

        Raises ``ValueError`` if the codebooks are empty, or the width is not the encoder's.
        """
        self._require_fitted(features_INE)
        return self.quantizer.encode(self._projected(features_INE))

    def quantize_soft(self, features_INE: Tensor, *, temperature: float, top: int) -> tuple[Tensor, Tensor, Tensor]:
        """Do what `encode_soft` does, for features. It raises the errors of `quantize`."""
        self._require_fitted(features_INE)
        return self.quantizer.encode_soft(self._projected(features_INE), temperature=temperature, top=top)

    def _require_fitted(self, features_INE: Tensor) -> None:
        if has_numbers(features_INE) and not self.fitted:
            raise ValueError(
                "SemanticTokenizer: its codebooks are empty. Fit them and name the folder: "
                f"`{FIT_COMMAND}`, then name='<folder>' in this tokenizer's config"
            )

    @torch.no_grad()
    def _projected(self, features_INE: Tensor) -> Tensor:
        if self.projection is None:
            return features_INE
        with full_float32(features_INE.device):
            return self.projection(features_INE.float())

    def _weights(self) -> nn.Module:
        """Return the module whose weights the tokenizer's folder holds."""
        others = dict(projection=self.projection, decoder=self.decoder)
        others = {name: module for name, module in others.items() if module is not None}
        return nn.ModuleDict(dict(quantizer=self.quantizer, **others)) if others else self.quantizer

    def encode(self, pixels: Pixels) -> Tensor:
        return self.quantize(self.features(pixels))

    def encode_soft(self, pixels: Pixels, *, temperature: float, top: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.quantize_soft(self.features(pixels), temperature=temperature, top=top)

    def embed(self, codes: Tensor) -> Tensor:
        return self.quantizer.embed(codes)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        if self.decoder is None:
            return super().decode(codes)
        with full_float32(codes.device):
            return self.decoder(self.quantizer.decode(codes)).clamp(-1, 1)

    def fit(
        self,
        batches: Iterable[Tensor],
        *,
        vectors_per_code: int = 64,
        iterations: int = 10,
        seed: int = 0,
        progress: bool = True,
    ) -> dict[str, list[float]]:
        """Fill the codebooks from batches of features (..., E). The batches must be in a random order of images.

        k-means runs on the first ``vectors_per_code * V`` vectors, or on all if there are fewer. Each later batch makes
        one EMA step. Returns `ResidualQuantizer.statistics` of the k-means vectors after the last step.

        Raises ``ValueError`` if there is no batch, if a number is not finite, or if the tokenizer has a ``projection``
        (it was trained together with its codebooks).
        """
        if self.projection is not None:
            raise ValueError(
                "SemanticTokenizer.fit: a tokenizer with a `projection` cannot be fitted: import it, or leave "
                "projection out"
            )
        generator = torch.Generator().manual_seed(seed)
        missing = vectors_per_code * max(self.codebook_sizes)  # vectors that k-means still needs
        device = self.quantizer.codebooks[0].weight.device
        sample, steps, restarted = [], 0, 0
        for batch in batches:
            batch = batch.to(device).reshape(-1, batch.shape[-1]).float()
            if not batch.isfinite().all():
                raise ValueError("SemanticTokenizer.fit: a batch of features holds NaN or infinity")
            if missing > 0:
                sample.append(batch)
                missing -= len(batch)
                if missing <= 0:
                    self._kmeans(sample, iterations, generator, progress)
                continue
            restarted += self.quantizer.update(batch, generator=generator)
            steps += 1
        if not sample:
            raise ValueError("SemanticTokenizer.fit: there is no batch of features; expected at least one")
        if missing > 0:
            self._kmeans(sample, iterations, generator, progress)
        self.statistics = self.quantizer.statistics(torch.cat(sample))
        self.source = None
        logger.info(
            "semantic tokenizer: codebooks fitted by k-means on the first vectors, then by one EMA update for each "
            "later batch (%d updates; %d codes that no vector used were restarted)",
            *(steps, restarted),
        )
        return self.statistics

    def _kmeans(self, sample: list[Tensor], iterations: int, generator: torch.Generator, progress: bool) -> None:
        total, what = iterations * self.depth, f"k-means, {self.depth} depths x {iterations} iterations"
        with tqdm(total=total, desc=what, unit="iteration", disable=not progress) as bar:
            vectors = torch.cat(sample)
            self.quantizer.kmeans(vectors, iterations=iterations, generator=generator, on_iteration=bar.update)

    def portable(self, config: dict) -> dict:
        own = super().portable(config)
        if self._shared_encoder is None:
            own["encoder"] = portable_of(self.own_encoder, self.encoder_config)
        return own

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the codebooks (``tokenizer.safetensors``), and their sizes and encoder (``tokenizer.json``)."""
        if not self.fitted:
            raise ValueError("SemanticTokenizer.save_pretrained: the codebooks are empty; fit them first")
        encoder = self.encoder
        description = dict(
            type="SemanticTokenizer",
            **self._sizes(),
            encoder=dict(**_describe(encoder), fingerprint=fingerprint_of(encoder), source=source_of(encoder)),
            encoder_config=self.encoder_config,
            statistics=self.statistics,
        )
        weights = (WEIGHTS, self._weights().state_dict())
        return write_folder(folder, weights=weights, texts={DESCRIPTION: description})

    def _load(self, name: str) -> None:
        folder = hub.require(name, what="visual tokenizer", fetch=FIT_COMMAND)
        description = dict(dict(quantizer=RESIDUAL), **read_json(folder / DESCRIPTION))  # the default of old folders
        expected = dict(
            type="SemanticTokenizer",
            **self._sizes(),
            encoder=dict(**_describe(self.encoder), fingerprint=fingerprint_of(self.encoder)),
        )
        different = _differences(expected, description)
        if different:
            raise ValueError(
                f"visual tokenizer {name!r}: {folder / DESCRIPTION} does not fit this config: {'; '.join(different)}. "
                f"Change the config, or fit a tokenizer for it: `{FIT_COMMAND}`"
            )
        load_file(self._weights(), folder / WEIGHTS)
        self.statistics = description.get("statistics")
        self.source = name

    def _sizes(self) -> dict:
        sizes = dict(codebook_sizes=self.codebook_sizes, code_width=self.code_width, shared=self.quantizer.shared)
        sizes["quantizer"] = self.quantizer_name
        others = dict(projection=self.projection_config, decoder=self.decoder_config)
        return sizes | {name: dict(config) for name, config in others.items() if config is not None}


def _require_one_size(encoder: Encoder, **parts: dict | None) -> None:
    """Raise ``ValueError`` if a part needs the same grid for all images, but the encoder has none."""
    found = [name for name, part in parts.items() if part is not None]
    if found and hasattr(encoder.transform, "grid_of"):
        raise ValueError(
            f"SemanticTokenizer.{found[0]} needs images of one size, but {type(encoder).__name__} reads them in their "
            "own resolution"
        )


def _describe(encoder: Encoder) -> dict:
    """Return all that decides the features besides the weights, as JSON values. layer: None if there is none."""
    transform = json.loads(json.dumps(dataclasses.asdict(encoder.transform)))
    return dict(
        type=type(encoder).__name__,
        width=encoder.width,
        grid=list(encoder.grid),
        layer=getattr(encoder, "layer", None),
        transform=transform,
    )


def _differences(expected: dict, found: dict, prefix: str = "") -> list[str]:
    lines = []
    for key, value in expected.items():
        other = found.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            lines += _differences(value, other, f"{prefix}{key}.")
        elif value != other:
            lines.append(f"{prefix}{key} is {other!r} in the folder, {value!r} here")
    return lines
