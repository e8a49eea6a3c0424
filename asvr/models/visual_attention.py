"""Attention rules for LLMs whose attention is not causal everywhere: bidirectional visual tokens, masked images.

Legend: ``B`` rows, ``T`` tokens in a row, ``V`` visual tokens in all rows, ``I`` crops of images, ``K`` separators.

Text always has causal attention. Between two tokens of one image, bits decide: the first token sees the second if the
first's query bits and the second's key bits share a bit. Tokens after an image see those of its tokens that have at
least one key bit.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from asvr.data.batch import Batch

MODES = ("causal", "bidirectional")
SEEN = 1  # the key bit of a token that all tokens of its image see


@dataclass(frozen=True)
class AttentionRule:
    """Which tokens of a batch see which others. Attention kernels use it instead of causal attention.

    image_BT: the number of the image that a token belongs to, -1 for text. query_BT, key_BT: bits, int64.
    real_BT: for rows that are padded on the left, False on padding; otherwise None. lengths: lengths of the samples of
    a packed row, or None.
    """

    image_BT: Tensor
    query_BT: Tensor
    key_BT: Tensor
    real_BT: Tensor | None = None
    lengths: tuple[int, ...] | None = None
    _made: dict = field(default_factory=dict, init=False, compare=False, repr=False)

    def masks(self, window: int | None) -> list[Tensor]:
        """Return masks that are True if a query (second last dimension) sees a key (last dimension).

        For a packed row there is one mask (t, t) for each sample, otherwise one mask (B, 1, T, T). window: the number
        of tokens that a text token sees, itself included. Masks are computed once for all layers with that window."""
        if window not in self._made:
            parts = [self.image_BT, self.query_BT, self.key_BT]
            if self.lengths is None:
                self._made[window] = [_mask(*parts, self.real_BT, window).unsqueeze(1)]
            else:
                samples = zip(*(part[0].split(self.lengths) for part in parts), strict=True)
                self._made[window] = [_mask(*sample, None, window) for sample in samples]
        return self._made[window]

    def first(self, tokens: int) -> "AttentionRule":
        """Return the rule for the first tokens of each row."""
        real_BT = None if self.real_BT is None else self.real_BT[:, :tokens]
        return AttentionRule(self.image_BT[:, :tokens], self.query_BT[:, :tokens], self.key_BT[:, :tokens], real_BT)

    def moved(self, index_BT: Tensor, real_BT: Tensor) -> "AttentionRule":
        """Return the rule for rows whose tokens were moved, such as padding from the left to the right."""
        parts = (part.gather(1, index_BT) for part in (self.image_BT, self.query_BT, self.key_BT))
        return AttentionRule(*parts, real_BT)


def _mask(image_T: Tensor, query_T: Tensor, key_T: Tensor, real_T: Tensor | None, window: int | None) -> Tensor:
    """Return the mask (..., T, T) of rows (..., T)."""
    place_T = torch.arange(image_T.shape[-1], device=image_T.device)
    behind_TT = place_T[:, None] - place_T
    causal_TT = behind_TT >= 0
    if window is not None:
        causal_TT &= behind_TT < window
    same_TT = (image_T[..., :, None] == image_T[..., None, :]) & (image_T >= 0)[..., None]
    shared_TT = (query_T[..., :, None] & key_T[..., None, :]) != 0
    mask_TT = torch.where(same_TT, shared_TT, causal_TT & (key_T != 0)[..., None, :])
    if real_T is not None:  # padding sees itself, because a softmax needs at least one value
        mask_TT = (mask_TT & real_T[..., None, :]) | (behind_TT == 0)
    return mask_TT


def rule_of(batch: Batch, bits_V: tuple[Tensor, Tensor] | None = None) -> AttentionRule:
    """Return the rule of a batch in which each visual token sees all tokens of its image, in all crops.

    bits_V: query bits and key bits of each visual token, for another rule."""
    shape, device = batch.input_ids_BT.shape, batch.input_ids_BT.device
    image_V = to_device(_image_of_token(batch), device)
    flat = torch.full((batch.input_ids_BT.numel(),), -1, dtype=torch.int64, device=device)
    flat = flat.index_copy(0, batch.visual_position_V, image_V)
    cells = batch.cells
    if cells is not None:  # a separator belongs to the image of the token before it
        flat = flat.index_copy(0, cells.separator_position_K, flat[cells.separator_position_K - 1])
    query, key = (torch.full_like(flat, SEEN) for _ in range(2))
    if bits_V is not None:
        query = query.index_copy(0, batch.visual_position_V, bits_V[0])
        key = key.index_copy(0, batch.visual_position_V, bits_V[1])
    real_BT = batch.attention_mask_BT if batch.left_padded else None
    lengths = None if batch.segments is None else tuple(batch.segments.lengths)
    return AttentionRule(flat.view(shape), query.view(shape), key.view(shape), real_BT, lengths)


def _image_of_token(batch: Batch) -> np.ndarray:
    """Return the number of each visual token's image."""
    image_I = np.repeat(np.arange(len(batch.crops)), batch.crops)
    if batch.cells is None:
        return np.repeat(image_I, batch.num_cells)
    return image_I[batch.cells.on_cpu_V // batch.num_cells]


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy numbers from the CPU to a device without waiting."""
    tensor = torch.tensor(values, device="cpu")
    if device.type == "cuda":  # a copy from memory that is not pinned would make the CPU wait
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
