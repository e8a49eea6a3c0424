"""Batches of zeros with given sizes, to measure memory and to check contracts."""

import torch
from torch import Tensor, nn

from asvr.data.batch import IMAGE_TOKEN, Batch
from asvr.data.layouts import Layout
from asvr.data.places import places_of
from asvr.data.transforms import blank_pixels
from asvr.models.tokenizers.base import INTEGERS


def truth_like(target, images: int) -> dict[str, Tensor]:
    """Return zeros like the cached truth of this many images. Codes have the dtype in which they are used."""
    return {
        name: torch.zeros(images, *spec.shape, dtype=torch.long if spec.dtype in INTEGERS else spec.dtype)
        for name, spec in target.truth_spec().items()
    }


def full_batch(
    model: nn.Module, rows: int, tokens: int, images: int | None = None, layout: Layout | None = None
) -> Batch:
    """Return a batch of zeros: rows without padding, with text that is all supervised.

    images: the number of images, spread evenly, the first one after one token; None: one for each row. layout: the
    layout of each image; None: the largest one. Truths, and features of a frozen encoder, are given as from a cache."""
    layout, images = layout or model.layout.largest(), rows if images is None else images
    starts = [1 + i * (rows * tokens // images) for i in range(images)]
    visual_places = {start + n for start in starts for n in range(layout.num_tokens)}
    text = [place for place in range(rows * tokens) if place % tokens and place not in visual_places]
    input_ids = torch.zeros(rows * tokens, dtype=torch.long)
    input_ids[sorted(visual_places)] = IMAGE_TOKEN
    crops = images * layout.num_crops
    sources = torch.tensor(text) - 1
    frozen = not any(p.requires_grad for p in model.encoder.parameters())
    views = model.views()
    if frozen:
        del views["encoder"]
    for target in model.targets:
        if target.truth_spec() is not None:
            views = {name: view for name, view in views.items() if name not in target.views()}
    return Batch(
        input_ids_BT=input_ids.view(rows, tokens),
        attention_mask_BT=torch.ones(rows, tokens, dtype=torch.bool),
        text_source_S=sources,
        text_target_S=torch.zeros_like(sources),
        **places_of([layout] * images, starts, [False] * images, model.encoder.num_tokens),
        pixels={name: blank_pixels(view, crops) for name, view in views.items()},
        features_INE=torch.zeros(crops, model.encoder.num_tokens, model.encoder.width) if frozen else None,
        truth={target.name: truth_like(target, crops) for target in model.targets if target.truth_spec() is not None},
    )
