"""Sample images of a data set with their token maps, for trackers."""

import numpy as np
import torch

from asvr.data.images import open_image
from asvr.data.refusals import Refusal, Refused
from asvr.evaluation.drawing import as_image, draw_targets
from asvr.evaluation.live import LiveModel
from asvr.evaluation.maps import as_seen, target_maps
from asvr.models.compiling import uncompiled


@uncompiled()
@torch.inference_mode()
def sample_images(live: LiveModel, dataset, number: int) -> dict[str, np.ndarray]:
    """The first ``number`` distinct images of the questions as ``sample_0``, ..., RGB (height, width, 3).

    Each is drawn with the maps of all targets. If no target can be drawn, the image is returned alone. Images that
    cannot be read are left out. The model is in eval mode afterwards.
    """
    live.model.eval()
    found: dict[str, np.ndarray] = {}
    for source in _first_images(dataset, number):
        try:
            image = open_image(source)
        except Refused:  # the evaluation counts it
            continue
        seen, maps = as_seen(live, image), target_maps(live, image)
        drawn = as_image(draw_targets(seen, maps)) if maps else seen
        found[f"sample_{len(found)}"] = np.asarray(drawn.convert("RGB"))
    return found


def _first_images(dataset, number: int) -> list:
    found: dict = {}  # by key
    for i in range(len(dataset)):
        if len(found) == number:
            break
        item = dataset.question(i)
        if not isinstance(item, Refusal):
            found |= dict(list(zip(item["image_keys"], item["images"], strict=True))[:1])
    return list(found.values())
