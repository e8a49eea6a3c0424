"""What a reconstruction target can read of a micro-batch.

Legend: ``B`` rows, ``T`` tokens in a row, ``I`` images (if an image is cut into crops, each crop counts as one), ``N``
visual tokens of an image, ``V`` visual tokens in all rows, ``H`` LLM width, ``E`` encoder width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from asvr.data.batch import Batch
from asvr.models.masking import Masked
from asvr.models.visual_attention import AttentionRule


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a target can read of one micro-batch.

    batch: the micro-batch. hidden: tap -> hidden states of all positions, flat (B*T, H), for the target's ``taps``.
    features_INE: the encoder's features, None if the batch has no image. training: whether this is a training step.
    masked: which tokens the target masked in the LLM pass that it reads. embeds_BTH: the LLM's input without masks.
    rule: the attention rule without masks (None: attention is causal).
    """

    batch: Batch
    hidden: Mapping[int, Tensor]
    features_INE: Tensor | None
    training: bool
    masked: Masked | None = None
    embeds_BTH: Tensor | None = None
    rule: AttentionRule | None = None

    def images(self, tap: int = -1) -> Tensor:
        """Return the hidden states (I, N, H) at the positions of the visual tokens.

        A cell without a token has zeros, see `there_IN`."""
        return self.by_image(self.hidden[tap][self.batch.visual_position_V])

    def by_image(self, values_VX: Tensor) -> Tensor:
        """Arrange values of the visual tokens (V, X) by image: (I, N, X). A cell without a token has zeros."""
        batch = self.batch
        if batch.cells is not None:
            all_cells = values_VX.new_zeros(batch.num_images * batch.num_cells, values_VX.shape[-1])
            values_VX = all_cells.index_copy(0, batch.cells.index_V, values_VX)
        return values_VX.unflatten(0, (batch.num_images, batch.num_cells))

    def means(self, tap: int = -1) -> Tensor:
        """Return the mean hidden state of each image, (I, H) float32. An image without tokens has zeros."""
        states_INH, there_IN = self.images(tap).float(), self.there_IN
        if there_IN is None:
            return states_INH.mean(1)
        return states_INH.sum(1) / there_IN.sum(1, keepdim=True).clamp(min=1)

    @property
    def has_tokens_I(self) -> Tensor:
        """Which images have at least one token, bool. A tile that consists of padding has none.

        `Batch.num_images_with_tokens` is their number, counted on the CPU."""
        there_IN = self.there_IN
        if there_IN is not None:
            return there_IN.any(1)
        positions_V = self.batch.visual_position_V
        return torch.ones(self.batch.num_images, dtype=torch.bool, device=positions_V.device)

    @property
    def there_IN(self) -> Tensor | None:
        """Which cells have a token, bool. None: all of them.

        Cells in the padding of a tile have none. With images in their own resolution, cells beyond the image have
        none."""
        batch = self.batch
        if batch.cells is None:
            return None
        index_V = batch.cells.index_V
        there = torch.zeros(batch.num_images * batch.num_cells, dtype=torch.bool, device=index_V.device)
        return there.index_fill(0, index_V, True).view(batch.num_images, batch.num_cells)
