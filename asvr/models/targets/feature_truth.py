"""The features that a target predicts: those of a frozen teacher, resampled to the cells of the model's encoder.

Legend: ``I`` images, ``N`` visual tokens of an image on the encoder's grid, ``M`` on the teacher's, ``E`` width.
"""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from asvr.base.log_once import log_once
from asvr.data.batch import Batch
from asvr.data.transforms import ImageTransform, Pixels
from asvr.models.component import source_of
from asvr.models.encoders.base import Encoder, grids_of
from asvr.models.targets.base import TensorSpec
from asvr.registry import ENCODERS

RESAMPLING = ("bilinear", "bicubic", "area")


class FeatureTruth:
    """The target features: those of a frozen teacher, or of the model's own encoder.

    teacher: config of an encoder, which is built and frozen. None: the features of the model's own encoder.
    resample: how features on another grid are resampled to the encoder's grid. None: the grids must agree.
    key: the target's config key, for messages.

    Attributes. teacher: the module, or None. width: ``E``. dtype: dtype of cached features, which is the teacher's.

    Raises ``ValueError`` if the grids do not fit, or the teacher sees other parts of the image than the encoder.
    """

    def __init__(self, teacher: dict | None, *, encoder, resample: str | None, key: str, load_weights: bool):
        if resample not in (None, *RESAMPLING):
            expected = ", ".join(map(repr, RESAMPLING))
            raise ValueError(f"{key}.resample={resample!r}: expected one of {expected}, or None")
        self.teacher: Encoder | None = None
        self.resample, self.width, self.num_cells = resample, encoder.width, encoder.num_tokens
        self.grids, self.native = grids_of(encoder), hasattr(encoder.transform, "grid_of")
        if teacher is None:
            if resample is not None:
                log_once(logging.WARNING, "%s.resample=%r has no effect: there is no teacher", key, resample)
            self.resample = None
            return
        built = ENCODERS.build(teacher, default_args=dict(load_weights=load_weights))
        self.teacher = built.requires_grad_(False).eval()
        self.width = built.width
        if load_weights and source_of(built) is None and any(True for _ in built.parameters()):
            log_once(
                logging.WARNING,
                "%s.teacher: %s names no weights, so its features are those of random weights",
                key,
                type(built).__name__,
            )
        dtypes = {parameter.dtype for parameter in built.parameters()}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        self._check(encoder, key)

    def _check(self, encoder, key: str) -> None:
        teacher, name = self.teacher, f"{key}.teacher"
        if hasattr(teacher.transform, "grid_of"):
            raise ValueError(
                f"{name}: {type(teacher).__name__} reads images in their own resolution, so that its cells are not "
                "those of another encoder: give it a fixed size, or leave it out to predict the encoder's own features"
            )
        own = grids_of(teacher)
        if own == self.grids and not self.native:
            if self.resample is not None:
                message = "%s.resample=%r has no effect: the teacher's grid is the encoder's"
                log_once(logging.WARNING, message, key, self.resample)
            self.resample = None
        elif len(own) > 1:
            raise ValueError(
                f"{name}: {type(teacher).__name__} has several grids, which differ from the encoder's: use one grid"
            )
        elif self.resample is None:
            there = "each image's own" if self.native else " and ".join("x".join(map(str, grid)) for grid in self.grids)
            raise ValueError(
                f"{name}: its grid is {'x'.join(map(str, own[0]))}, the encoder's {there}: choose sizes that agree, or "
                f"set {key}.resample='bilinear'"
            )
        crops = [getattr(part.transform, "center_crop", False) for part in (teacher, encoder)]
        if crops[0] and self.native:
            raise ValueError(
                f"{name}: it crops images, and {type(encoder).__name__} reads them in their own resolution, so that "
                "their cells differ: set transform=dict(center_crop=False) in the teacher"
            )
        if crops[0] != crops[1]:
            log_once(
                logging.WARNING,
                "%s: either the teacher or the encoder crops the image, so with image_aspect='square' a cell does not "
                "show the same place: set transform=dict(center_crop=False) in the one that crops",
                name,
            )

    def views(self, name: str) -> dict[str, ImageTransform]:
        return {} if self.teacher is None else {name: self.teacher.transform}

    def spec(self) -> TensorSpec | None:
        """Return the spec of an image's cached features. None for the encoder's features: they have their own cache."""
        if self.teacher is None:
            return None
        tokens = self.teacher.num_tokens if self.native else self.num_cells
        return TensorSpec((tokens, self.width), self.dtype)

    def features(self, pixels: Pixels | None, features_INE: Tensor | None) -> Tensor:
        """Return the features (I, N, E), without gradients. If images have their own resolution, they are (I, M, E)."""
        if self.teacher is None:
            return features_INE
        own_IME = self.teacher(pixels)
        if self.resample is not None and not self.native:
            own_IME = torch.cat([self._on_grid(own_IME, grid) for grid in self.grids], 1)
        return own_IME.to(self.dtype)

    def by_cell(self, features: Tensor, batch: Batch) -> Tensor:
        """Bring the result of `features`, cached or not, to the encoder's cells: (I, N, E) float32.

        For an image in its own resolution, the values after its cells are zero."""
        if self.teacher is None or not self.native:
            return features.float()
        found_INE = features.new_zeros(len(features), self.num_cells, self.width, dtype=torch.float32)
        for i in range(len(features)):  # the grids are known on the CPU
            rows, columns = batch.grid_of(i, self.grids[0])
            found_INE[i, : rows * columns] = self._on_grid(features[i : i + 1].float(), (rows, columns))[0]
        return found_INE

    def _on_grid(self, features_IME: Tensor, grid: tuple[int, int]) -> Tensor:
        if tuple(grid) == tuple(self.teacher.grid):
            return features_IME.float()
        maps = features_IME.float().transpose(1, 2).unflatten(2, tuple(self.teacher.grid))
        return F.interpolate(maps, tuple(grid), mode=self.resample).flatten(2).transpose(1, 2)
