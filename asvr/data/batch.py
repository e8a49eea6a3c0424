"""What the data side hands to the model.

Legend: ``B`` rows, ``T`` tokens in a row, ``I`` images in the batch, ``N`` visual tokens of an image,
``E`` encoder width, ``D`` code depth, ``S`` supervised text positions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

# In input_ids, the place of one visual token (the number LLaVA uses for a whole image).
IMAGE_TOKEN = -200
# In labels, a position that is not supervised.
IGNORE = -100


@dataclass
class Segments:
    """The samples that stand one after another in the one row of a packed batch, each of which sees itself alone.

    lengths: of each in tokens, Python ints since they decide shapes. offsets: where each begins, and where the last
    ends, int32, as variable-length kernels take it. position_ids_BT: (1, T), from 0 in each sample.
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
class Batch:
    """One micro-batch. Every index is computed by the collate function, on the CPU, so that the
    training step needs no ``nonzero`` and no synchronisation.

    input_ids_BT: token ids, ``IMAGE_TOKEN`` where a visual token goes, padded.
    attention_mask_BT: True on real tokens. left_padded: whether the padding of any row stands in front of it.
    segments: of a packed batch, which has one row and no padding; else None.
    text_source_S: flat positions (``b * T + t``) whose hidden state predicts ``text_target_S``.
    image_positions_IN: flat positions of each image's visual tokens, in raster order.
    has_previous_I: False where an image is the first thing of its sample, so that with ``shift=1`` no
        position predicts its first token. A list of Python bools: it decides shapes. preceded_P: flat indices into
        (I*N) of the visual tokens that a position predicts then; None where it is all of them.
    pixels: view name -> (I, 3, h, w). Absent when features and codes come from a cache.
    features_INE: cached encoder features. truth: target name -> what it reconstructs, cached, by name (I, ...).
    sample_ids: "file:index" of each sample, for messages. refusals: what was left out
        (`asvr.data.refusals.Refusal`). num_tokens: real positions, pads not counted, known on the CPU.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    text_source_S: Tensor
    text_target_S: Tensor
    image_positions_IN: Tensor
    has_previous_I: list
    preceded_P: Tensor | None = None
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
        return self.image_positions_IN.shape[0]

    @property
    def num_text_targets(self) -> int:
        return self.text_source_S.shape[0]

    def num_visual_targets(self, shift: int) -> int:
        """Visual positions that carry a loss; with ``shift=1`` one fewer for each image with nothing in front."""
        skipped = self.has_previous_I.count(False) if shift else 0
        return self.image_positions_IN.numel() - skipped

    @staticmethod
    def blank(num_image_tokens: int, *, packed: bool = False) -> "Batch":
        """One token with nothing to learn, for a process whose samples make fewer micro-batches than another's."""
        nothing = torch.zeros(0, dtype=torch.int64)
        return Batch(
            input_ids_BT=torch.zeros(1, 1, dtype=torch.int64),
            attention_mask_BT=torch.ones(1, 1, dtype=torch.bool),
            text_source_S=nothing,
            text_target_S=nothing,
            image_positions_IN=nothing.view(0, num_image_tokens),
            has_previous_I=[],
            segments=Segments.of([1]) if packed else None,
        )

    def to(self, device, non_blocking: bool = True) -> "Batch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader, so that the copy to the accelerator overlaps with the step."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable) -> "Batch":
        def apply(value):
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, dict):
                return {key: apply(item) for key, item in value.items()}
            return value.map(function) if isinstance(value, Segments) else value

        return Batch(**{f.name: apply(getattr(self, f.name)) for f in fields(self)})


def visual_sources(batch: Batch, shift: int) -> tuple[Tensor, Tensor | None]:
    """Which flat hidden position predicts which visual token.

    Returns ``source_P``, flat positions into (B*T), and ``token_P``, flat indices into (I*N), or None
    where it is all of them. ``shift=0``: the visual token's own position (the released code);
    ``shift=1``: the position before it (the paper's equation 2).
    """
    source_IN = batch.image_positions_IN - shift
    if shift == 0 or batch.preceded_P is None:
        return source_IN.flatten(), None
    return source_IN.flatten()[batch.preceded_P], batch.preceded_P


def drawn_sources(batch: Batch, shift: int, count: int) -> tuple[Tensor, Tensor]:
    """As `visual_sources`, for ``count`` visual tokens of each image, drawn anew at each call.

    Each is drawn with probability ``count / N``, so that the sum of their losses is ``count / N`` of the whole one on
    average. Drawn on the CPU: what is drawn decides shapes, and nothing waits for the device.
    """
    images, tokens = batch.image_positions_IN.shape
    return places_of_cells(batch, shift, torch.rand(images, tokens, device="cpu").argsort(1)[:, :count])


def places_of_cells(batch: Batch, shift: int, cells_IK: Tensor) -> tuple[Tensor, Tensor]:
    """As `visual_sources`, for some visual tokens of each image, whose numbers are on the CPU."""
    images, tokens = batch.image_positions_IN.shape
    token_P = (cells_IK + torch.arange(images, device="cpu")[:, None] * tokens).flatten()
    if shift and not all(batch.has_previous_I):
        first = (cells_IK == 0) & ~torch.tensor(batch.has_previous_I, device="cpu")[:, None]
        token_P = token_P[~first.flatten()]
    device = batch.image_positions_IN.device
    if device.type == "cuda":
        token_P = token_P.pin_memory()  # the host would wait for a copy of other memory
    token_P = token_P.to(device, non_blocking=True)
    return (batch.image_positions_IN - shift).flatten()[token_P], token_P
