"""Token maps show what each target predicts at each visual token of an image, and with which probability.

If the visual tokenizer has a decoder, they also show the pixels of the predicted codes. ``pretrained`` is an
`asvr.pretrained.Pretrained`, or an `asvr.evaluation.live.LiveModel` during training.

Legend: ``I`` images, ``N`` visual tokens of an image, ``M`` cells of a tokenizer's grid, ``D`` code depth, ``R`` rows
and ``C`` columns of the encoder's grid.
"""

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from PIL import Image

from asvr.base.precision import computing_in
from asvr.data.batch import Batch
from asvr.data.collate import Collate
from asvr.data.conversation import encode_segments, segments_of
from asvr.data.templates import IMAGE_MARK, build_template
from asvr.data.transforms import ImageTransform
from asvr.evaluation.predictions import PredictedCodes, inspected, maps_of, predicted_codes
from asvr.models.targets import CodeTarget, nearest_cells

SHOWN_SIDE = 448  # the approximate side in pixels of an image under maps


@dataclass(frozen=True, kw_only=True)
class TargetMap:
    """The map of one target with codes on one image.

    right_RCD: 1 where the code was predicted right, else 0. probability_RCD: the probability of the predicted code.
    Both are NaN at a token that no hidden state predicts. images: the image as the tokenizer sees it, the one decoded
    from the true codes, and the one decoded from the predicted codes. It is None if the tokenizer has no decoder.
    """

    name: str
    right_RCD: np.ndarray
    probability_RCD: np.ndarray
    images: tuple[Image.Image, Image.Image, Image.Image] | None


@dataclass(frozen=True, kw_only=True)
class ValueMap:
    """The maps of a target without codes on one image: the result of `Target.inspect` by name. NaN: no value."""

    name: str
    values_RC: dict[str, np.ndarray]


@torch.inference_mode()
def target_maps(pretrained: Any, image: Image.Image) -> list[TargetMap | ValueMap]:
    """The maps of all targets of the model that have something to show.

    The prompt is the beginning of the template and the image, without a question. Each code is predicted from the part
    of the image in front of it and the true codes of the depths before, as in training.
    """
    model, batch = pretrained.model, alone(pretrained, image)
    grid, maps = model.encoder.grid, []
    for target in model.targets:
        if not isinstance(target, CodeTarget):
            with computing_in(pretrained.precision, model.device):
                found = inspected(model, target, batch)
            if found is not None:
                values = {n: maps_of(v_IN.float().cpu(), batch, grid)[0].numpy() for n, v_IN in found.items()}
                maps.append(ValueMap(name=target.name, values_RC=values))
            continue
        with computing_in(pretrained.precision, model.device):
            codes = predicted_codes(model, target, batch)
        own = batch.grid_of(0, grid)
        right_RCD, probability_RCD = (
            values_IND[0, : prod(own)].unflatten(0, own).cpu().numpy()
            for values_IND in (codes.right_IND, codes.probability_IND)
        )
        images = _decoded(model, target, batch, codes) if target.decodes else None
        maps.append(TargetMap(name=target.name, right_RCD=right_RCD, probability_RCD=probability_RCD, images=images))
    return maps


def alone(pretrained: Any, image: Image.Image) -> Batch:
    """A batch of one prompt that has only the image."""
    model, tokenizer = pretrained.model, pretrained.text_tokenizer
    messages = [{"from": "human", "value": IMAGE_MARK}]
    segments = segments_of(messages, 1, build_template(pretrained.template, tokenizer), prompt=True)
    input_ids, labels = encode_segments(segments, tokenizer)
    collate = Collate(
        layout=model.layout,
        views=model.views(),
        pad_id=tokenizer.pad_id,
        image_aspect=pretrained.image_aspect,
    )
    item = dict(input_ids=input_ids, labels=labels, images=[image], image_keys=["0"], sample_id="image")
    return collate([item]).to(model.device)


def _decoded(model, target: CodeTarget, batch: Batch, codes: PredictedCodes) -> tuple:
    """The three images of `TargetMap.images`.

    If the grids differ, each cell of the tokenizer's grid takes the prediction of the token that contains its centre.
    """
    tokenizer = target.tokenizer
    own = batch.grid_of(0, model.encoder.grid)
    predicted_IMD = codes.predicted_IND[:, nearest_cells(own, tokenizer.grid)]
    seen = batch.pixels["encoder" if target.shares_encoder else target.name]
    decoded = [tokenizer.decode(codes_IMD)[0] for codes_IMD in (codes.own_IMD, predicted_IMD)]
    plain = ImageTransform(size=tokenizer.transform.size)  # decoders give -1 to 1
    return to_image(seen[0], tokenizer.transform), *(to_image(pixels, plain) for pixels in decoded)


def as_seen(pretrained: Any, image: Image.Image) -> Image.Image:
    """The image as the encoder sees it, but with more pixels: cropped, padded or squeezed.

    An encoder with images in their own resolution keeps their shape, rounded to whole tokens. If there are several
    encoders, the first one counts.
    """
    layout, transform, aspect = pretrained.model.layout, pretrained.model.encoder.transform, pretrained.image_aspect
    first = layout.crops(image.convert("RGB"))[0]  # maps belong to the first crop
    if first.size != image.size and layout.first_is_whole:
        aspect = "resize"  # the crop is the squeezed image, so squeeze the image itself: it has more pixels
    else:
        image = first
    transform = getattr(transform, "shown", transform)
    if hasattr(transform, "grid_of"):
        rows, columns = transform.grid_of(image.size)
        factor = max(1, round(SHOWN_SIDE / max(rows, columns)))
        return image.convert("RGB").resize((factor * columns, factor * rows))
    factor = max(1, round(SHOWN_SIDE / max(transform.size)))
    larger = replace(transform, size=tuple(factor * side for side in transform.size))
    return to_image(larger(image, aspect), larger)


def to_image(pixels: torch.Tensor, transform: ImageTransform) -> Image.Image:
    """Turn pixels (3, h, w), which ``transform`` made, into an image again."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transform.mean, transform.std))
    values = (pixels.float().cpu() * std + mean).clamp(0, 1)
    return Image.fromarray((255 * values).round().byte().permute(1, 2, 0).numpy())
