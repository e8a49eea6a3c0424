"""Frozen features and codes of every picture, computed once and memory-mapped.

Legend: ``I`` images, ``N`` visual tokens of an image, ``E`` encoder width, ``D`` code depth.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from asvr.data.images import open_image
from asvr.engine.log import progress_bar

BATCH = 32
INDEX = "index.json"


class FeatureCache:
    """Encoder features and target codes by picture key, read from ``folder``.

    What ``Collate`` asks: ``features(keys)`` -> (I, N, E) and ``codes(target, keys)`` -> (I, N, D), or None
    where the cache has none. The folder's name is a digest of the encoder, the transform and the bytes of all
    pictures (see `folder_of`), so that a cache can't be stale; it is renamed when complete, so that none is partial.
    """

    def __init__(self, folder: Path):
        index = json.loads((folder / INDEX).read_text())
        self.folder = folder
        self.rows = {key: row for row, key in enumerate(index["keys"])}
        self.dtype = getattr(torch, index["dtype"])
        self.features_INE = np.load(folder / "features.npy", mmap_mode="r")
        self.codes_IND: dict[str, np.ndarray] = {}

    def features(self, keys: list[str]) -> Tensor:
        return torch.from_numpy(self.features_INE[self._rows(keys)]).view(self.dtype)

    def codes(self, target: str, keys: list[str]) -> Tensor | None:
        if target not in self.codes_IND:
            return None
        return torch.from_numpy(self.codes_IND[target][self._rows(keys)])

    def _rows(self, keys: list[str]) -> list[int]:
        missing = [key for key in keys if key not in self.rows]
        if missing:
            raise ValueError(
                f"{self.folder} has no features of {missing[0]} ({len(missing)} pictures): delete it to compute it anew"
            )
        return [self.rows[key] for key in keys]

    def batches(self, keys: list[str]) -> Iterator[Tensor]:
        """Features in batches, in the order of ``keys``."""
        for start in range(0, len(keys), BATCH):
            yield self.features(keys[start : start + BATCH])

    def add_codes(
        self, target: str, tokenizer, *, shared: bool, pictures: dict, aspect: str, device: torch.device
    ) -> None:
        """Codes of every picture by ``tokenizer``: from the cached features where it shares the encoder
        (no picture is opened then), else from its own pixels. Kept in the folder under a digest of the tokenizer."""
        depends_on = f"{tokenizer.fingerprint()} {tokenizer.transform} {tokenizer.grid}"
        file = self.folder / f"codes.{target}.{hashlib.sha256(depends_on.encode()).hexdigest()[:16]}.npy"
        if not file.is_file():
            keys = list(self.rows)
            source = self.batches(keys) if shared else pixel_batches(keys, pictures, tokenizer.transform, aspect)
            encode = tokenizer.quantize if shared else tokenizer.encode
            dtype = np.int16 if max(tokenizer.codebook_sizes) <= 2**15 else np.int32
            out = np.empty((len(keys), tokenizer.num_tokens, tokenizer.depth), dtype)
            with progress_bar(total=len(keys), desc=f"codes {target}", unit="picture") as bar:
                for row, batch in zip(range(0, len(keys), BATCH), source, strict=True):
                    out[row : row + BATCH] = encode(batch.to(device)).cpu().numpy()
                    bar.update(len(batch))
            partial = file.with_suffix(".partial.npy")
            np.save(partial, out)
            os.replace(partial, file)
        self.codes_IND[target] = np.load(file, mmap_mode="r")


def build_feature_cache(root: Path, encoder, pictures: dict, aspect: str, device: torch.device) -> FeatureCache:
    """The cache of ``pictures`` (key -> file or picture) under ``root``; computed on ``device`` unless it is there."""
    folder = folder_of(root, encoder, pictures, aspect)
    if not (folder / INDEX).is_file():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        keys = list(pictures)
        out = None
        with progress_bar(total=len(keys), desc="features", unit="picture") as bar, torch.inference_mode():
            for row, pixels in zip(
                range(0, len(keys), BATCH), pixel_batches(keys, pictures, encoder.transform, aspect), strict=True
            ):
                features_INE = encoder(pixels.to(device)).cpu()
                if out is None:
                    dtype = str(features_INE.dtype).removeprefix("torch.")
                    shape = (len(keys), *features_INE.shape[1:])
                    out = np.lib.format.open_memmap(
                        partial / "features.npy", "w+", _numpy_dtype(features_INE.dtype), shape
                    )
                out[row : row + BATCH] = _bits(features_INE)
                bar.update(len(pixels))
        out.flush()
        (partial / INDEX).write_text(json.dumps(dict(keys=keys, dtype=dtype)))
        os.replace(partial, folder)
    return FeatureCache(folder)


def folder_of(root: Path, encoder, pictures: dict, aspect: str) -> Path:
    """The folder is named by what its content depends on: encoder, transform and the bytes of every picture."""
    digest = hashlib.sha256(
        f"{encoder.fingerprint()} {encoder.transform} {getattr(encoder, 'layer', '')} {aspect}".encode()
    )
    for key, source in pictures.items():
        content = source.tobytes() if isinstance(source, Image.Image) else Path(source).read_bytes()
        digest.update(key.encode() + hashlib.sha256(content).digest())
    return root / digest.hexdigest()[:16]


def pixel_batches(keys: list[str], pictures: dict, transform, aspect: str) -> Iterator[Tensor]:
    for start in range(0, len(keys), BATCH):
        yield torch.stack([transform(open_image(pictures[key]), aspect) for key in keys[start : start + BATCH]])


def _numpy_dtype(dtype: torch.dtype):
    """NumPy has no bfloat16: its bits are kept as int16."""
    return np.int16 if dtype == torch.bfloat16 else np.dtype(str(dtype).removeprefix("torch."))


def _bits(tensor: Tensor) -> np.ndarray:
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
