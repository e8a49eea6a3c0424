"""One encoder at several scales of the image: S^2, "When Do We Not Need Larger Vision Models?"
(https://arxiv.org/abs/2403.13043).

Legend: ``I`` images, ``N`` visual tokens of an image, ``E`` encoder width, ``h`` and ``w`` the encoder's own pixels.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asvr.data.transforms import ImageTransform
from asvr.models.component import portable_of
from asvr.models.encoders.base import grids_of
from asvr.models.encoders.composite import CompositeEncoder
from asvr.registry import ENCODERS


@ENCODERS.register_module()
class S2(CompositeEncoder):
    """One encoder on the image at several scales, whose features stand side by side as channels (S2).

    The image at each scale is cut into crops of the encoder's own size. The features of the crops are put together
    again and averaged down to the encoder's own grid, so the number of tokens does not change.

    encoder: the config of an encoder of a fixed image size. scales: whole numbers; an image at scale ``s`` has ``s``
    times the encoder's height and width, and ``s * s`` crops. The transform makes the largest scale; the others are
    interpolated from it (bicubic), as in the released code.

    Raises ``ValueError`` for other scales, and for an encoder with another kind of transform or several grids.
    """

    def __init__(self, *, encoder: dict, scales: list[int] = (1, 2), load_weights: bool = True):
        super().__init__()
        scales = tuple(scales)
        if not scales or not all(type(scale) is int and scale >= 1 for scale in scales) or len({*scales}) < len(scales):
            raise ValueError(
                f"S2 scales={list(scales)}: expected different whole numbers of at least 1, such as [1, 2]"
            )
        self.encoder, self.scales = ENCODERS.build(encoder, default_args=dict(load_weights=load_weights)), scales
        own = self.encoder.transform
        if type(own) is not ImageTransform or len(grids_of(self.encoder)) > 1:
            raise ValueError(
                f"S2 encoder: {type(self.encoder).__name__} does not see one image of a fixed size in one grid, which "
                "cannot be cut into crops: give S2 to the encoders in it"
            )
        self.size, self.grid = own.size, tuple(self.encoder.grid)
        self.width = len(scales) * self.encoder.width
        self.transform = replace(own, size=tuple(max(scales) * side for side in own.size))
        self.note_sources()

    @property
    def layer(self) -> dict:
        """For the description of a tokenizer that is fitted on these features."""
        return dict(scales=list(self.scales), layer=getattr(self.encoder, "layer", None))

    def inner(self) -> dict[str, nn.Module]:
        return dict(encoder=self.encoder)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: (I, 3, S * h, S * w), ``S`` the largest scale."""
        crops = [self._crops(pixels, scale) for scale in self.scales]
        features = self.encoder(torch.cat(crops)).split([len(own) for own in crops])
        maps = [self._whole(own, scale) for own, scale in zip(features, self.scales, strict=True)]
        return torch.cat(maps, 1).flatten(2).transpose(1, 2)

    def _crops(self, pixels: Tensor, scale: int) -> Tensor:
        """(scale * scale * I, 3, h, w), crop after crop."""
        size = tuple(scale * side for side in self.size)
        if size != self.transform.size:
            pixels = F.interpolate(pixels, size, mode="bicubic")
        rows = pixels.unflatten(2, (scale, self.size[0])).unflatten(4, (scale, self.size[1]))
        return rows.permute(2, 4, 0, 1, 3, 5).flatten(0, 2)

    def _whole(self, features: Tensor, scale: int) -> Tensor:
        """Features of the crops of one scale -> (I, E, rows, columns) of the encoder's own grid."""
        maps = features.transpose(1, 2).unflatten(2, self.grid).unflatten(0, (scale, scale, -1))
        whole = maps.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)
        return F.interpolate(whole.float(), self.grid, mode="area").to(features.dtype)

    def portable(self, config: dict) -> dict:
        return dict(super().portable(config), encoder=portable_of(self.encoder, config["encoder"]))
