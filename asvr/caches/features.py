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
from torch import Tensor

from asvr.base.disk import require_room
from asvr.base.files import partial_of
from asvr.base.log import logger, progress_bar
from asvr.caches.codes import code_dtype, hash_pictures
from asvr.data.images import LARGEST_LIMIT, MAX_PIXELS, open_image
from asvr.data.refusals import Refused, check_policy
from asvr.models.component import fingerprint_of
from asvr.models.tokenizers.base import require_codes
from asvr.models.tokenizers.precision import full_float32

BATCH = 32
INDEX = "index.json"
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class FeatureCache:
    """Encoder features and target codes by picture key, read from ``folder``.

    What ``Collate`` asks: ``check(keys)``, ``features(keys)`` -> (I, N, E) and ``codes(target, keys)`` -> (I, N, D),
    or None where the cache has none. The folder's name is a digest of the encoder, the transform and the bytes of all
    pictures (see `folder_of`), so that a cache can't be stale; it is renamed when complete, so that none is partial.

    rows: key -> row of a picture. refused: key -> (message, reason) of a picture that could not be read.
    """

    def __init__(self, folder: Path):
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self.folder = folder
        self.rows = {key: row for row, key in enumerate(index["keys"])}
        self.refused = index["refused"]
        self.dtype = getattr(torch, index["dtype"])
        self.features_INE = _mapped(folder / "features.npy", _numpy_dtype(self.dtype), len(self.rows))
        self.codes_IND: dict[str, np.ndarray] = {}

    def check(self, keys: list[str]) -> None:
        """Raise `Refused` where one of the pictures could not be read when the cache was made."""
        for key in keys:
            if key in self.refused:
                raise Refused(*self.refused[key])

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
        self, target: str, tokenizer, *, shared: bool, pictures: dict, aspect: str, device: torch.device, config: dict
    ) -> None:
        """Codes of every picture by ``tokenizer``: from the cached features where it shares the encoder
        (no picture is opened then), else from its own pixels. Kept in the folder under a digest of the tokenizer and
        its ``config``."""
        depends_on = f"{fingerprint_of(tokenizer)} {tokenizer.transform} {tokenizer.grid} {_text(config)}"
        file = self.folder / f"codes.{target}.{hashlib.sha256(depends_on.encode()).hexdigest()[:16]}.npy"
        if not file.is_file():
            keys = list(self.rows)
            source = self.batches(keys)
            if not shared:
                source = (pixels for _, pixels in pixel_batches(keys, pictures, tokenizer.transform, aspect))
            encode = tokenizer.quantize if shared else tokenizer.encode
            shape = (len(keys), tokenizer.num_tokens, tokenizer.depth)
            out = np.empty(shape, code_dtype(max(tokenizer.codebook_sizes)))
            with progress_bar(total=len(keys), desc=f"codes {target}", unit="picture") as bar:
                for row, batch in zip(range(0, len(keys), BATCH), source, strict=True):
                    codes_IND = require_codes(
                        encode(batch.to(device)), f"codes of target {target!r}", tokenizer.codebook_sizes
                    )
                    if codes_IND.shape != (len(batch), *shape[1:]):
                        expected = (len(batch), *shape[1:])
                        raise ValueError(
                            f"codes of target {target!r} have the shape {(*codes_IND.shape,)}, expected {expected}"
                        )
                    out[row : row + BATCH] = codes_IND.numpy()
                    bar.update(len(batch))
            partial = partial_of(file)  # runs may share the folder
            with open(partial, "wb") as stream:
                np.save(stream, out)
            os.replace(partial, file)
        self.codes_IND[target] = _mapped(file, code_dtype(max(tokenizer.codebook_sizes)), len(self.rows))


def build_feature_cache(
    root: Path,
    encoder,
    pictures: dict,
    aspect: str,
    device: torch.device,
    *,
    config: dict,
    on_error: str = "raise",
    max_pixels: int = MAX_PIXELS,
    budget_gb: float | None = None,
) -> FeatureCache:
    """The cache of ``pictures`` (key -> file or picture) under ``root``; computed on ``device`` unless it is there.

    config: what decides the encoder's output besides its weights. on_error: what happens where a picture cannot be
    read: ``raise``, or ``skip``, which notes it, so that its samples are refused when they come. max_pixels: of a
    picture. budget_gb: the most that the features may take of the disk; the first batch tells what all take. Raises
    ``ValueError`` where that, or what is free, is less.
    """
    if max_pixels != MAX_PIXELS:  # what is refused depends on it
        config = dict(config, max_pixels=max_pixels)
    if not pictures:
        raise ValueError("data.cache=True and a target with `fit`: the data have no picture to fit its tokenizer on")
    folder = folder_of(root, encoder, pictures, aspect, config)
    refused = None if check_policy(on_error) == "raise" else {}
    if not (folder / INDEX).is_file():
        partial = partial_of(folder)  # runs may share the root
        partial.mkdir(parents=True)
        kept, out, told = [], None, None
        batches = pixel_batches(list(pictures), pictures, encoder.transform, aspect, refused, max_pixels)
        with progress_bar(total=len(pictures), desc="features", unit="picture") as bar, torch.inference_mode():
            for keys, pixels in batches:
                with full_float32(device):  # as `VLM.encode` does
                    features_INE = encoder(pixels.to(device)).cpu()
                told = told or (features_INE.dtype, features_INE.shape[1:])
                _require_alike(features_INE, *told)
                if out is None:
                    dtype = str(features_INE.dtype).removeprefix("torch.")
                    shape = (len(pictures), *features_INE.shape[1:])  # the rows of refused ones stay empty at the end
                    needed = len(pictures) * features_INE[0].nbytes
                    require_room(root, needed, f"features of {len(pictures)} pictures", budget_gb)
                    out = np.lib.format.open_memmap(
                        partial / "features.npy", "w+", _numpy_dtype(features_INE.dtype), shape
                    )
                out[len(kept) : len(kept) + len(keys)] = _bits(features_INE)
                kept += keys
                bar.update(len(keys))
        if out is None:
            raise ValueError(f"none of the {len(pictures)} pictures can be read: {next(iter(refused.values()))[0]}")
        out.flush()
        (partial / INDEX).write_text(json.dumps(dict(keys=kept, dtype=dtype, refused=refused or {})), encoding="utf-8")
        if (folder / INDEX).is_file():  # another run was faster
            shutil.rmtree(partial)
        else:
            os.replace(partial, folder)
    cache = FeatureCache(folder)
    if cache.refused:
        message, _ = next(iter(cache.refused.values()))
        logger.warning("%d of %d pictures are left out, first: %s", len(cache.refused), len(pictures), message)
    return cache


def folder_of(root: Path, encoder, pictures: dict, aspect: str, config: dict) -> Path:
    """The folder is named by what its content depends on: encoder, transform and the bytes of every picture, of which
    those that have not changed since the last start are not read again."""
    digest = hashlib.sha256(f"{fingerprint_of(encoder)} {encoder.transform} {aspect} {_text(config)}".encode())
    for key, sha256 in hash_pictures(root, pictures).items():
        digest.update(key.encode() + bytes.fromhex(sha256))
    return root / digest.hexdigest()[:16]


def _text(config: dict) -> str:
    return json.dumps(config, sort_keys=True, default=str)


def pixel_batches(
    keys: list[str],
    pictures: dict,
    transform,
    aspect: str,
    refused: dict | None = None,
    max_pixels: int = LARGEST_LIMIT,
) -> Iterator[tuple[list[str], Tensor]]:
    """Keys and pixels. refused: gets key -> (message, reason) of what cannot be read; None raises `Refused`.
    max_pixels: of a picture; by default that was checked before, when its features were computed."""
    batch: dict[str, Tensor] = {}
    for key in keys:
        try:
            batch[key] = transform(open_image(pictures[key], max_pixels=max_pixels), aspect)
        except Refused as error:
            if refused is None:
                raise
            refused[key] = (str(error), error.reason)
        if len(batch) == BATCH:
            yield list(batch), torch.stack(list(batch.values()))
            batch = {}
    if batch:
        yield list(batch), torch.stack(list(batch.values()))


def _require_alike(features_INE: Tensor, dtype: torch.dtype, shape: tuple) -> None:
    """Raise ``ValueError`` for features that the cache would store as something else than they are."""
    if dtype not in FLOATS:
        raise ValueError(f"the encoder's features are {dtype}: expected one of {', '.join(map(str, FLOATS))}")
    if (features_INE.dtype, features_INE.shape[1:]) != (dtype, shape):
        got = f"{features_INE.dtype} {tuple(features_INE.shape[1:])}"
        raise ValueError(f"the encoder's features are {got}, those of its first batch were {dtype} {tuple(shape)}")


def _mapped(file: Path, dtype, rows: int) -> np.ndarray:
    """Raises ``ValueError`` where a file does not hold what the cache says."""
    found = np.load(file, mmap_mode="r")
    if found.dtype != dtype or len(found) < rows:
        raise ValueError(
            f"{file} holds {len(found)} rows of {found.dtype}, expected {rows} of {np.dtype(dtype)}: delete "
            f"{file.parent} to compute it anew"
        )
    return found


def _numpy_dtype(dtype: torch.dtype):
    """NumPy has no bfloat16: its bits are kept as int16."""
    return np.int16 if dtype == torch.bfloat16 else np.dtype(str(dtype).removeprefix("torch."))


def _bits(tensor: Tensor) -> np.ndarray:
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
