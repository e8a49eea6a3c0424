"""The cache of features and truths of every image, computed once and memory-mapped.

Legend: ``I`` encoder images (each crop counts as one), ``N`` visual tokens of an encoder image, ``E`` encoder width,
``D`` code depth.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asvr.base.disk import require_room
from asvr.base.files import partial_of
from asvr.base.log import logger, progress_bar
from asvr.base.precision import full_float32
from asvr.caches.codes import hash_images
from asvr.caches.pixels import BATCH, num_crops, pixel_batches
from asvr.data.images import LARGEST_LIMIT, MAX_PIXELS
from asvr.data.layouts import ImageLayout, WholeImage, crop_keys
from asvr.data.refusals import Refused, check_policy
from asvr.data.transforms import Pixels, move
from asvr.models.component import fingerprint_of

INDEX = "index.json"
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class FeatureCache:
    """Encoder features and target truths by image key, read from ``folder``.

    ``Collate`` calls ``check(keys)``, ``features(keys)`` -> (I, N, E) and ``truth(target, keys)``, which returns the
    truth of a target by name, or None if the cache has none. The name of the folder is a digest of the encoder, the
    transform and the bytes of all images (see `folder_of`), so a cache is never out of date. The folder gets its name
    when it is complete.

    rows: key of an image, or of each of its crops (`asvr.data.layouts.crop_keys`) -> row. crops: key of an image -> its
    number of crops. refused: key of an image that could not be read -> (message, reason).
    """

    def __init__(self, folder: Path):
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self.folder = folder
        self.crops = dict(zip(index["keys"], index.get("crops") or [1] * len(index["keys"]), strict=True))
        self.rows = {key: row for row, key in enumerate(self.crops_of(index["keys"]))}
        self.refused = index["refused"]
        self.dtype = getattr(torch, index["dtype"])
        self.features_INE = _mapped(folder / "features.npy", _numpy_dtype(self.dtype), len(self.rows))
        self.truths: dict[str, dict[str, tuple[np.ndarray, torch.dtype]]] = {}

    def check(self, keys: list[str]) -> None:
        """Raise `Refused` if one of the images could not be read when the cache was made."""
        for key in keys:
            if key in self.refused:
                raise Refused(*self.refused[key])

    def features(self, keys: list[str]) -> Tensor:
        return torch.from_numpy(self.features_INE[self._rows(keys)]).view(self.dtype)

    def truth(self, target: str, keys: list[str]) -> dict[str, Tensor] | None:
        if target not in self.truths:
            return None
        rows = self._rows(keys)
        return {name: torch.from_numpy(array[rows]).view(dtype) for name, (array, dtype) in self.truths[target].items()}

    def _rows(self, keys: list[str]) -> list[int]:
        missing = [key for key in keys if key not in self.rows]
        if missing:
            raise ValueError(
                f"{self.folder} has no features of {missing[0]} ({len(missing)} images): delete it to compute it again"
            )
        return [self.rows[key] for key in keys]

    def crops_of(self, keys: list[str]) -> list[str]:
        """The keys of all crops of these images."""
        return [crop for key in keys for crop in crop_keys(key, self.crops[key])]

    def batches(self, keys: list[str]) -> Iterator[Tensor]:
        """Features in batches, in the order of ``keys``, the keys of crops."""
        for start in range(0, len(keys), BATCH):
            yield self.features(keys[start : start + BATCH])

    def add_truth(
        self,
        target,
        *,
        images: dict,
        aspect: str,
        device: torch.device,
        config: dict,
        layout: ImageLayout | None = None,
        budget_gb: float | None = None,
    ) -> None:
        """Add the truth of a target for every image; compute it unless the folder has it.

        If the target has no views of its own, only the cached features are needed and no image is opened. The files
        are named by a digest of what the truth depends on.

        target: a `Target` with a `truth_spec`, or a `CodeTruth`. config: its entry, without names of weights.
        budget_gb: see `build_feature_cache`.
        """
        specs = target.truth_spec()
        digest = hashlib.sha256(f"{target.cache_key()} {_text(config)}".encode()).hexdigest()[:16]
        files = {name: self.folder / f"{name}.{target.name}.{digest}.npy" for name in specs}
        if not all(file.is_file() for file in files.values()):
            needed = len(self.rows) * sum(prod(spec.shape) * spec.dtype.itemsize for spec in specs.values())
            require_room(self.folder, needed, f"the truth of target {target.name!r}", budget_gb)
            self._compute(target, files, images, layout, aspect, device)
        self.truths[target.name] = {
            name: (_mapped(files[name], _numpy_dtype(spec.dtype), len(self.rows)), spec.dtype)
            for name, spec in specs.items()
        }

    def _compute(self, target, files: dict[str, Path], images: dict, layout, aspect: str, device) -> None:
        keys, specs = list(self.rows), target.truth_spec()
        partial = {name: partial_of(file) for name, file in files.items()}  # runs may share the folder
        out = {
            name: np.lib.format.open_memmap(partial[name], "w+", _numpy_dtype(spec.dtype), (len(keys), *spec.shape))
            for name, spec in specs.items()
        }
        batches = self._of_views(images, layout, target.views(), aspect)
        with progress_bar(total=len(keys), desc=f"truth of {target.name}", unit="image") as bar, torch.no_grad():
            for row, (features_INE, pixels) in zip(
                range(0, len(keys), BATCH), zip(self.batches(keys), batches, strict=True), strict=True
            ):
                with full_float32(device):
                    own = {name: move(values, device) for name, values in pixels.items()}
                    found = target.to_cache(target.truth(own, features_INE.to(device)))
                if found.keys() != specs.keys():
                    raise ValueError(
                        f"target {target.name!r}: to_cache() gives {sorted(found)}, truth_spec() names {sorted(specs)}"
                    )
                for name, values in found.items():
                    expected = (len(features_INE), *specs[name].shape)
                    if tuple(values.shape) != expected:
                        raise ValueError(
                            f"{name} of target {target.name!r} has shape {(*values.shape,)}, expected {expected}"
                        )
                    out[name][row : row + BATCH] = _bits(values)
                bar.update(len(features_INE))
        for name, file in files.items():
            out[name].flush()
            os.replace(partial[name], file)

    def _of_views(self, images: dict, layout, views: dict, aspect: str) -> Iterator[dict[str, Pixels]]:
        """The pixels of each view in batches, in the order of the rows. Each image is opened once."""
        transforms = list(views.values())
        if not transforms:
            yield from ({} for _ in range(0, len(self.rows), BATCH))
            return
        checked = dict(max_pixels=LARGEST_LIMIT)  # sizes were checked when features were computed
        for _, *stacks in pixel_batches(list(self.crops), images, transforms, aspect, layout=layout, **checked):
            yield dict(zip(views, stacks, strict=True))


def build_feature_cache(
    root: Path,
    encoder,
    images: dict,
    aspect: str,
    device: torch.device,
    *,
    config: dict,
    layout: ImageLayout | None = None,
    on_error: str = "raise",
    max_pixels: int = MAX_PIXELS,
    budget_gb: float | None = None,
) -> FeatureCache:
    """The feature cache of ``images`` (key -> source) under ``root``, computed on ``device`` unless it exists.

    config: what decides the encoder's output besides its weights. layout: the crops of an image; None: no crops.
    on_error: what happens if an image cannot be read: ``raise``, or ``skip``, which records it; its samples are then
    refused when they come. max_pixels: of an image. budget_gb: the most disk space that the features may take. Raises
    ``ValueError`` after the first batch if all features need more than that, or more than is free.
    """
    if max_pixels != MAX_PIXELS:  # it decides which images are refused
        config = dict(config, max_pixels=max_pixels)
    if not images:
        raise ValueError("data.cache=True and `fit` of a target need images: the dataset has none")
    folder = folder_of(root, encoder, images, aspect, with_layout(config, layout))
    refused = None if check_policy(on_error) == "raise" else {}
    if not (folder / INDEX).is_file():
        partial = partial_of(folder)  # runs may share the root
        partial.mkdir(parents=True)
        kept, out, form = [], None, None
        options = dict(layout=layout, max_pixels=max_pixels)
        batches = pixel_batches(list(images), images, [encoder.transform], aspect, refused=refused, **options)
        with progress_bar(total=len(images), desc="features", unit="image") as bar, torch.inference_mode():
            for keys, pixels in batches:
                with full_float32(device):  # as `VLM.encode` does
                    features_INE = encoder(move(pixels, device)).cpu()
                form = form or (features_INE.dtype, features_INE.shape[1:])
                _require_alike(features_INE, *form)
                if out is None:
                    dtype = str(features_INE.dtype).removeprefix("torch.")
                    rows = num_crops(images, **options)
                    shape = (rows, *features_INE.shape[1:])  # rows of refused images stay empty at the end
                    require_room(root, rows * features_INE[0].nbytes, f"features of {len(images)} images", budget_gb)
                    out = np.lib.format.open_memmap(
                        partial / "features.npy", "w+", _numpy_dtype(features_INE.dtype), shape
                    )
                out[len(kept) : len(kept) + len(keys)] = _bits(features_INE)
                bar.update(len({*keys} - {*kept[-1:]}))
                kept += keys
        if out is None:
            raise ValueError(f"none of the {len(images)} images can be read, first: {next(iter(refused.values()))[0]}")
        out.flush()
        crops = Counter(kept)
        index = dict(keys=list(crops), crops=list(crops.values()), dtype=dtype, refused=refused or {})
        (partial / INDEX).write_text(json.dumps(index), encoding="utf-8")
        if (folder / INDEX).is_file():  # another run was faster
            shutil.rmtree(partial)
        else:
            os.replace(partial, folder)
    cache = FeatureCache(folder)
    if cache.refused:
        message, _ = next(iter(cache.refused.values()))
        logger.warning("%d of %d images are left out, first: %s", len(cache.refused), len(images), message)
    return cache


def folder_of(root: Path, encoder, images: dict, aspect: str, config: dict) -> Path:
    """The folder of a cache. Its name is a digest of what decides its content: encoder, transform and the bytes of
    every image. Images that have not changed since the last start are not read again."""
    digest = hashlib.sha256(f"{fingerprint_of(encoder)} {encoder.transform} {aspect} {_text(config)}".encode())
    for key, sha256 in hash_images(root, images).items():
        digest.update(key.encode() + bytes.fromhex(sha256))
    return root / digest.hexdigest()[:16]


def with_layout(config: dict, layout: ImageLayout | None) -> dict:
    """The config with the layout, if it cuts images into crops: features then depend on it."""
    return config if layout is None or type(layout) is WholeImage else dict(config, layout=layout.crops_key())


def _text(config: dict) -> str:
    return json.dumps(config, sort_keys=True, default=str)


def _require_alike(features_INE: Tensor, dtype: torch.dtype, shape: tuple) -> None:
    """Raise ``ValueError`` for features that the cache cannot store exactly."""
    if dtype not in FLOATS:
        raise ValueError(f"the encoder's features are {dtype}: expected one of {', '.join(map(str, FLOATS))}")
    if (features_INE.dtype, features_INE.shape[1:]) != (dtype, shape):
        got = f"{features_INE.dtype} {tuple(features_INE.shape[1:])}"
        raise ValueError(f"the encoder's features are {got}, those of its first batch are {dtype} {tuple(shape)}")


def _mapped(file: Path, dtype, rows: int) -> np.ndarray:
    """Map an array into memory. Raises ``ValueError`` if it is not what the index of the cache says."""
    found = np.load(file, mmap_mode="r")
    if found.dtype != dtype or len(found) < rows:
        raise ValueError(
            f"{file} has {len(found)} rows of {found.dtype}, expected {rows} of {np.dtype(dtype)}: delete "
            f"{file.parent} to compute it again"
        )
    return found


def _numpy_dtype(dtype: torch.dtype):
    """The NumPy dtype for a torch dtype. NumPy has no bfloat16, so its bits are stored as int16."""
    return np.int16 if dtype == torch.bfloat16 else np.dtype(str(dtype).removeprefix("torch."))


def _bits(tensor: Tensor) -> np.ndarray:
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
