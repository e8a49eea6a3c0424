"""The batch that the data code gives to the model.

Legend: ``B`` rows, ``T`` tokens in a row, ``I`` encoder images in the batch (each crop counts as one), ``N`` visual
tokens of an encoder image, ``V`` visual tokens in the rows, ``K``
separators between them, ``E`` encoder width, ``D`` code depth, ``S`` supervised text positions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

# In input_ids: the place of one visual token. LLaVA uses this number for a whole image.
IMAGE_TOKEN = -200
# In labels: a position that is not supervised.
IGNORE = -100


@dataclass
class Segments:
    """The samples in the single row of a packed batch. Each sample attends only to itself.

    lengths: of each sample in tokens, as Python integers because they decide shapes. offsets: the begin of each sample
    and the end of the last, int32, as variable-length kernels take it. position_ids_BT: (1, T), from 0 in each sample.
    """

    lengths: list
    offsets: Tensor
    position_ids_BT: Tensor

    @staticmethod
    def of(lengths: list[int]) -> "Segments":
        offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        position_ids_BT = torch.cat([torch.arange(length) for length in lengths])[None]
        return Segments(list(lengths), offsets, position_ids_BT)

    def map(self, function: Callable) -> "Segments":
        return Segments(self.lengths, function(self.offsets), function(self.position_ids_BT))

    def to(self, device) -> "Segments":
        return self.map(lambda tensor: tensor.to(device))


@dataclass
class Cells:
    """The cell of the encoder's grid for each visual token.

    It is needed if the rows do not have all cells in their order: for tiles without padding, and for images in their
    own resolution.

    index_V: flat index into (I*N) of each visual token. on_cpu_V: the same on the CPU, where shapes are decided.
    grids: rows and columns of each encoder image. separator_position_K: flat positions of the separators.
    separator_K: the kind of each separator.
    """

    index_V: Tensor
    on_cpu_V: np.ndarray
    grids: list
    separator_position_K: Tensor
    separator_K: Tensor

    def map(self, function: Callable) -> "Cells":
        separators = function(self.separator_position_K), function(self.separator_K)
        return Cells(function(self.index_V), self.on_cpu_V, self.grids, *separators)


@dataclass
class Batch:
    """One micro-batch.

    The collate function computes every index on the CPU, so the training step needs no ``nonzero`` and no
    synchronisation.

    input_ids_BT: token ids, ``IMAGE_TOKEN`` where a visual token goes, padded.
    attention_mask_BT: True on real tokens. left_padded: whether any row has padding on the left.
    segments: the samples of a packed batch, which has one row and no padding; else None.
    text_source_S: flat positions (``b * T + t``); their hidden states predict ``text_target_S``.
    visual_position_V: flat positions of the visual tokens, image after image. num_cells: ``N``. crops: the number
        of encoder images of each image. cells: the cell of each token; None if the rows have all of (I*N) in order.
    unpreceded: indices into ``V`` of tokens that come first in their sample. With ``shift=1`` no position predicts
        them. It is a Python list because it decides shapes. preceded_V: the other indices; None if that is all.
    pixels: view name -> (I, 3, h, w), or what its transform returns. Absent if features and codes come from a cache.
    features_INE: cached encoder features. truth: target name -> its cached truth, by name (I, ...).
    sample_ids: "file:index" of each sample, for messages. refusals: the samples that were left out
        (`asvr.data.refusals.Refusal`). num_tokens: positions without padding, known on the CPU.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    text_source_S: Tensor
    text_target_S: Tensor
    visual_position_V: Tensor
    num_cells: int = 0
    crops: list = field(default_factory=list)
    cells: Cells | None = None
    unpreceded: list = field(default_factory=list)
    preceded_V: Tensor | None = None
    pixels: dict = field(default_factory=dict)
    features_INE: Tensor | None = None
    truth: dict = field(default_factory=dict)
    sample_ids: list = field(default_factory=list)
    refusals: list = field(default_factory=list)
    num_tokens: int = 0
    left_padded: bool = False
    segments: Segments | None = None

    @property
    def num_images(self) -> int:
        """``I``: each crop of an image counts as one."""
        return sum(self.crops)

    @property
    def num_images_with_tokens(self) -> int:
        """The number of encoder images with at least one token."""
        return self.num_images if self.cells is None else len(np.unique(self.cells.on_cpu_V // self.num_cells))

    @property
    def num_text_targets(self) -> int:
        return self.text_source_S.shape[0]

    def num_visual_targets(self, shift: int) -> int:
        """The number of visual tokens with a loss. With ``shift=1``, the first token of a sample has none."""
        return len(self.visual_position_V) - (len(self.unpreceded) if shift else 0)

    def grid_of(self, image: int, grid: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of cells of one encoder image. grid: the encoder's own."""
        return grid if self.cells is None else self.cells.grids[image]

    @staticmethod
    def blank(*, packed: bool = False) -> "Batch":
        """A batch of one token without loss, for a process that has fewer micro-batches than another."""
        nothing = torch.zeros(0, dtype=torch.int64)
        return Batch(
            input_ids_BT=torch.zeros(1, 1, dtype=torch.int64),
            attention_mask_BT=torch.ones(1, 1, dtype=torch.bool),
            text_source_S=nothing,
            text_target_S=nothing,
            visual_position_V=nothing,
            segments=Segments.of([1]) if packed else None,
        )

    def to(self, device, non_blocking: bool = True) -> "Batch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Pin the memory, so that the copy to the accelerator overlaps with the step. The DataLoader calls it."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable) -> "Batch":
        def apply(value):
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, dict):
                return {key: apply(item) for key, item in value.items()}
            return value.map(function) if isinstance(value, Segments | Cells) else value

        return Batch(**{f.name: apply(getattr(self, f.name)) for f in fields(self)})


def visual_sources(batch: Batch, shift: int) -> tuple[Tensor, Tensor | None]:
    """Which hidden position predicts which visual token.

    Returns ``source_P``, flat positions into (B*T), and ``token_P``, flat indices into (I*N); None means all of them
    in order. ``shift=0``: the position of the visual token itself (the released code). ``shift=1``: the position
    before it (the paper's equation 2).
    """
    source_V, token_V = batch.visual_position_V - shift, None if batch.cells is None else batch.cells.index_V
    if shift == 0 or batch.preceded_V is None:
        return source_V, token_V
    return source_V[batch.preceded_V], batch.preceded_V if token_V is None else token_V[batch.preceded_V]


def drawn_sources(batch: Batch, shift: int, count: int) -> tuple[Tensor, Tensor]:
    """Like `visual_sources`, but for ``count`` random visual tokens of each image, drawn anew at each call.

    Each token is drawn with probability ``count / N``, so the sum of their losses is on average ``count / N`` of the
    full sum. An image with fewer tokens gets fewer draws. They are drawn on the CPU: their number decides shapes, and
    nothing waits for the device.
    """
    order_IN = torch.rand(batch.num_images, batch.num_cells, device="cpu")
    if batch.cells is None:
        token_P = _flat(batch, order_IN.argsort(1)[:, :count])
        return _sources(batch, shift, token_P, token_P)
    if isinstance(order_IN, FakeTensor):  # for the memory plan, where only sizes count
        return fixed_sources(batch, shift, np.arange(count))
    there_IN = np.zeros(order_IN.shape, dtype=bool)
    there_IN.reshape(-1)[batch.cells.on_cpu_V] = True
    wanted_I = there_IN.sum(1) * count / batch.num_cells
    wanted_I = np.floor(wanted_I + torch.rand(len(wanted_I), device="cpu").numpy())  # rounding keeps the mean
    rank_IN = np.where(there_IN, order_IN.numpy(), 2).argsort(1).argsort(1)
    return _sources_that_are_there(batch, shift, (rank_IN < wanted_I[:, None]).reshape(-1).nonzero()[0])


def fixed_sources(batch: Batch, shift: int, cells_K: np.ndarray) -> tuple[Tensor, Tensor]:
    """Like `visual_sources`, but for the same cells of each image. Cells without a place in the rows are left out."""
    if batch.cells is None:
        token_P = _flat(batch, torch.tensor(cells_K, device="cpu").expand(batch.num_images, -1))
        return _sources(batch, shift, token_P, token_P)
    first_I1 = np.arange(batch.num_images)[:, None] * batch.num_cells
    return _sources_that_are_there(batch, shift, (first_I1 + cells_K).reshape(-1))


def count_of_cells(batch: Batch, shift: int, cells_K: np.ndarray) -> int:
    """The number of positions that `fixed_sources` returns."""
    if batch.cells is None:
        unseen = len(batch.unpreceded) if shift and 0 in cells_K else 0
        return batch.num_images * len(cells_K) - unseen
    kept_V = np.isin(batch.cells.on_cpu_V % batch.num_cells, cells_K)
    if shift and batch.unpreceded:
        kept_V[batch.unpreceded] = False
    return int(kept_V.sum())


def _sources_that_are_there(batch: Batch, shift: int, token_P: np.ndarray) -> tuple[Tensor, Tensor]:
    assert batch.cells is not None  # otherwise all cells have a place
    places = np.full(batch.num_images * batch.num_cells, -1)
    places[batch.cells.on_cpu_V] = np.arange(len(batch.cells.on_cpu_V))
    place_P = places[token_P]
    kept = (torch.tensor(own[place_P >= 0], device="cpu") for own in (token_P, place_P))
    return _sources(batch, shift, *kept)


def _sources(batch: Batch, shift: int, token_P: Tensor, place_P: Tensor) -> tuple[Tensor, Tensor]:
    """The sources of visual tokens. token_P: flat indices into (I*N); place_P: indices into V; both on the CPU."""
    if shift and batch.unpreceded:
        kept_P = ~torch.isin(place_P, torch.tensor(batch.unpreceded, device="cpu"))
        token_P, place_P = token_P[kept_P], place_P[kept_P]
    device = batch.visual_position_V.device
    if device.type == "cuda":  # a copy from memory that is not pinned would make the host wait
        token_P, place_P = token_P.pin_memory(), place_P.pin_memory()
    token_P, place_P = token_P.to(device, non_blocking=True), place_P.to(device, non_blocking=True)
    return (batch.visual_position_V - shift)[place_P], token_P


def _flat(batch: Batch, cells_IK: Tensor) -> Tensor:
    return (cells_IK + torch.arange(batch.num_images, device="cpu")[:, None] * batch.num_cells).flatten()
