"""Images of which the LLM gets a part: which visual tokens are masked, and what is to be told at which of them.

Legend: ``I`` images, ``N`` visual tokens of an image, ``V`` visual tokens in the rows, ``P`` rows of a masked loss,
``H`` LLM width.
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
    """What a target has the LLM get in place of a batch's images.

    token_H: the mask token. masked_V: indices into ``V`` of the tokens that it stands for. bits_V: who sees whom, see
    `asvr.models.visual_attention.rule_of`; None: as the model attends. shared: the text and the other targets read the
    same pass; False: the target has a pass of its own, and theirs is not masked.
    place_P: where the target's loss is taken, indices into ``V``; weight: how much each counts.
    """

    token_H: Tensor
    masked_V: Tensor
    bits_V: tuple[Tensor, Tensor] | None
    shared: bool
    place_P: Tensor
    weight: float

    def on(self, embeds_BTH: Tensor, batch: Batch) -> Tensor:
        """embeds_BTH with the mask token at the masked visual tokens."""
        places = batch.visual_position_V[self.masked_V]
        tokens_MH = self.token_H.to(embeds_BTH.dtype).expand(len(places), -1)
        return embeds_BTH.flatten(0, 1).index_copy(0, places, tokens_MH).view_as(embeds_BTH)

    def map_of(self, values_V: Tensor, batch: Batch) -> Tensor:
        """What the visual tokens have, as (I, N): at the places of the loss, NaN elsewhere."""
        cell_V = torch.arange(len(values_V), device=values_V.device) if batch.cells is None else batch.cells.index_V
        found = values_V.new_full((batch.num_images * batch.num_cells,), float("nan"))
        found[cell_V[self.place_P]] = values_V[self.place_P]
        return found.view(batch.num_images, batch.num_cells)


class MaskedHead(nn.Module):
    """The head of a target that masks visual tokens: ``mlp``, and the learned ``token`` (H,) that stands for them."""

    def __init__(self, mlp: nn.Module, hidden_size: int):
        super().__init__()
        self.mlp = mlp
        self.token = nn.Parameter(torch.randn(hidden_size) * hidden_size**-0.5)


def images_of(batch: Batch) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each of the ``I``: the places of its tokens in ``V``, and the cells that they are; on the CPU."""
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
    """A `Masked` on the batch's device, of what was drawn on the CPU, which decides shapes."""
    device = batch.visual_position_V.device
    bits = None if bits_V is None else tuple(to_device(own_V, device) for own_V in bits_V)
    return Masked(token_H, to_device(masked_V, device), bits, shared, to_device(place_P, device), weight)


def drawer(*, training: bool) -> np.random.Generator:
    """What masks are drawn with, on the CPU: in training by torch's own random state, which checkpoints hold; elsewhere
    the same ones in each batch, so that a loss can be compared with an earlier one."""
    drawn = torch.randint(2**31, (), device="cpu") if training else 0
    seed = 0 if isinstance(drawn, FakeTensor) else int(drawn)  # memory is planned: sizes count alone
    return np.random.default_rng(seed)
