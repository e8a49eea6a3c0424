"""The attention of an answer to each visual token. `asvr.evaluation.maps` makes the token maps.

Legend: ``B`` rows, ``T`` tokens in a row, ``N`` visual tokens of an image, ``V`` visual tokens of the last image, ``L``
layers, ``R`` rows and ``C`` columns of the encoder's grid.
"""

from math import prod

import numpy as np
import torch
from PIL import Image

from asvr.base.precision import computing_in
from asvr.data.batch import Batch
from asvr.evaluation.maps import TargetMap, ValueMap, as_seen, target_maps
from asvr.pretrained import Pretrained

__all__ = ["TargetMap", "ValueMap", "answer_attention", "as_seen", "target_maps"]


@torch.inference_mode()
def answer_attention(pretrained: Pretrained, images: list[Image.Image], messages: list[dict]) -> np.ndarray:
    """The attention of the last answer of ``messages`` to each token of the last image, by layer (L, R, C).

    These are the attention weights of the positions that write the answer and its end, averaged over positions and
    heads. The sum of a layer is the image's share of all attention. If the image is cut into crops, it is the first
    crop's. A cell without a token has NaN. The weights come from a second pass over the conversation. Raises
    ``ValueError`` if there is no image, or if the LLM has no attention weights.
    """
    if not images:
        raise ValueError("there is no image to look at")
    model = pretrained.model
    prompt = pretrained.batch([dict(images=images, messages=messages[:-1])])
    batch = pretrained.batch([dict(images=images, messages=messages)], answered=True)
    first, last = prompt.num_tokens - 1, batch.text_source_S[-1].item()
    end = min(last + 1, getattr(model.llm, "max_positions", None) or last + 1)
    token_V, cell_V, grid = _of_last_image(batch, model.encoder.grid)
    with computing_in(pretrained.precision, model.device):
        embeds_BTH, _ = model.embed(batch)
        rule = model.attention_rule(batch)
        layers = model.llm.attention(embeds_BTH[:, :end], first, **({} if rule is None else dict(rule=rule)))
    weights_LV = torch.stack([weights[0].float().mean((0, 1))[token_V] for weights in layers])
    weights_LN = torch.full((len(layers), prod(grid)), float("nan"), device=weights_LV.device)
    weights_LN[:, cell_V] = weights_LV
    return weights_LN.unflatten(1, grid).cpu().numpy()


def _of_last_image(batch: Batch, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """The tokens of the last image's first crop: their positions, their cells, and the grid of the cells."""
    crop = batch.num_images - batch.crops[-1]
    grid, index_V = batch.grid_of(crop, grid), np.arange(batch.num_images * batch.num_cells)
    if batch.cells is not None:
        index_V = batch.cells.on_cpu_V
    cells_V = index_V - crop * batch.num_cells
    (own,) = ((cells_V >= 0) & (cells_V < prod(grid))).nonzero()
    device = batch.visual_position_V.device
    return batch.visual_position_V[torch.tensor(own)], torch.tensor(cells_V[own], device=device), grid
