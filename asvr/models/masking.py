"""Masked images: which visual tokens the LLM does not see, and at which of them a target's loss is computed.

Legend: ``I`` images, ``N`` visual tokens of an image, ``V`` visual tokens in all rows, ``P`` rows of a masked loss,
``H`` LLM width, ``M`` masked visual tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from asvr.data.batch import Batch
from asvr.models.visual_attention import to_device


@dataclass(frozen=True)
class Masked:
    """The masks that a target applies to the visual tokens of a batch.

    token_H: the mask token. masked_V: indices into ``V`` of the masked tokens. bits_V: which visual tokens see which
    others, see `asvr.models.visual_attention.rule_of`; None: the model's usual attention. shared: True if the text and
    the other targets read the same masked pass. False: the target has an LLM pass of its own, and only that is masked.
    place_P: indices into ``V`` of the tokens that carry the target's loss. weight: the weight of each of them.
    """

    token_H: Tensor
    masked_V: Tensor
    bits_V: tuple[Tensor, Tensor] | None
    shared: bool
    place_P: Tensor
    weight: float

    def on(self, embeds_BTH: Tensor, batch: Batch) -> Tensor:
        """Return embeds_BTH with the mask token in place of the masked visual tokens."""
        places = batch.visual_position_V[self.masked_V]
        tokens_MH = self.token_H.to(embeds_BTH.dtype).expand(len(places), -1)
        return embeds_BTH.flatten(0, 1).index_copy(0, places, tokens_MH).view_as(embeds_BTH)

    def map_of(self, values_V: Tensor, batch: Batch) -> Tensor:
        """Arrange values of the visual tokens as (I, N). Tokens that do not carry the loss have NaN."""
        cell_V = torch.arange(len(values_V), device=values_V.device) if batch.cells is None else batch.cells.index_V
        found = values_V.new_full((batch.num_images * batch.num_cells,), float("nan"))
        found[cell_V[self.place_P]] = values_V[self.place_P]
        return found.view(batch.num_images, batch.num_cells)


class MaskedHead(nn.Module):
    """The head of a target that masks visual tokens: ``mlp``, and the learned mask ``token`` (H,)."""

    def __init__(self, mlp: nn.Module, hidden_size: int):
        super().__init__()
        self.mlp = mlp
        self.token = nn.Parameter(torch.randn(hidden_size) * hidden_size**-0.5)


def images_of(batch: Batch) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, for each of the ``I`` images, the indices of its tokens in ``V``, and their cells; on the CPU."""
    if batch.cells is None:
        for i in range(batch.num_images):
            yield np.arange(batch.num_cells) + i * batch.num_cells, np.arange(batch.num_cells)
        return
    image_V, cell_V = np.divmod(batch.cells.on_cpu_V, batch.num_cells)
    for i in range(batch.num_images):
        own_V = np.flatnonzero(image_V == i)
        yield own_V, cell_V[own_V]


def masked(
    batch: Batch,
    token_H: Tensor,
    masked_V: np.ndarray,
    place_P: np.ndarray,
    *,
    weight: float,
    shared: bool,
    bits_V: tuple[np.ndarray, np.ndarray] | None = None,
) -> Masked:
    """Build a `Masked` on the batch's device. The masks were drawn on the CPU, because they decide shapes."""
    device = batch.visual_position_V.device
    bits = None if bits_V is None else tuple(to_device(own_V, device) for own_V in bits_V)
    return Masked(token_H, to_device(masked_V, device), bits, shared, to_device(place_P, device), weight)


def drawer(*, training: bool) -> np.random.Generator:
    """Return the random generator that draws masks, on the CPU.

    In training its seed comes from torch's random state, which checkpoints hold. In evaluation the seed is the same for
    each batch, so that losses can be compared."""
    drawn = torch.randint(2**31, (), device="cpu") if training else 0
    seed = 0 if isinstance(drawn, FakeTensor) else int(drawn)  # a fake tensor: only the plan of memory is made
    return np.random.default_rng(seed)
