"""An encoder that sees the image at several scales: S^2, "When Do We Not Need Larger Vision Models?"
(https://arxiv.org/abs/2403.13043).

Legend: ``I`` images, ``N`` visual tokens of an image, ``E`` encoder width, ``h`` and ``w`` height and width of the
encoder's input.
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
    """One encoder that sees the image at several scales. The features of all scales are concatenated (S2).

    At each scale the image is cut into crops of the encoder's input size. The features of the crops are put together
    again and averaged down to the encoder's grid, so the number of tokens does not change.

    encoder: config of an encoder with a fixed image size. scales: integers. An image at scale ``s`` has ``s`` times the
    encoder's height and width, and ``s * s`` crops. The transform makes the largest scale. The others are interpolated
    from it (bicubic), as in the released code.

    Raises ``ValueError`` for other scales, and for an encoder with another kind of transform or with several grids.
    """

    def __init__(self, *, encoder: dict, scales: list[int] = (1, 2), load_weights: bool = True):
        super().__init__()
        scales = tuple(scales)
        if not scales or not all(type(scale) is int and scale >= 1 for scale in scales) or len({*scales}) < len(scales):
            raise ValueError(f"S2 scales={list(scales)}: expected different integers of at least 1, such as [1, 2]")
        self.encoder, self.scales = ENCODERS.build(encoder, default_args=dict(load_weights=load_weights)), scales
        own = self.encoder.transform
        if type(own) is not ImageTransform or len(grids_of(self.encoder)) > 1:
            raise ValueError(
                f"S2 encoder: {type(self.encoder).__name__} does not take one image of a fixed size on one grid, so it "
                "cannot read crops: use S2 around the encoders in it"
            )
        self.size, self.grid = own.size, tuple(self.encoder.grid)
        self.width = len(scales) * self.encoder.width
        self.transform = replace(own, size=tuple(max(scales) * side for side in own.size))
        self.note_sources()

    @property
    def layer(self) -> dict:
        """What the description of a tokenizer says about this encoder if it is fitted on its features."""
        return dict(scales=list(self.scales), layer=getattr(self.encoder, "layer", None))

    def inner(self) -> dict[str, nn.Module]:
        return dict(encoder=self.encoder)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features_INE. pixels: (I, 3, S * h, S * w), where ``S`` is the largest scale."""
        crops = [self._crops(pixels, scale) for scale in self.scales]
        features = self.encoder(torch.cat(crops)).split([len(own) for own in crops])
        maps = [self._whole(own, scale) for own, scale in zip(features, self.scales, strict=True)]
        return torch.cat(maps, 1).flatten(2).transpose(1, 2)

    def _crops(self, pixels: Tensor, scale: int) -> Tensor:
        """Return the crops of one scale, (scale * scale * I, 3, h, w): the first crop of all images comes first."""
        size = tuple(scale * side for side in self.size)
        if size != self.transform.size:
            pixels = F.interpolate(pixels, size, mode="bicubic")
        rows = pixels.unflatten(2, (scale, self.size[0])).unflatten(4, (scale, self.size[1]))
        return rows.permute(2, 4, 0, 1, 3, 5).flatten(0, 2)

    def _whole(self, features: Tensor, scale: int) -> Tensor:
        """Join the features of the crops of one scale to (I, E, rows, columns) on the encoder's grid."""
        maps = features.transpose(1, 2).unflatten(2, self.grid).unflatten(0, (scale, scale, -1))
        whole = maps.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)
        return F.interpolate(whole.float(), self.grid, mode="area").to(features.dtype)

    def portable(self, config: dict) -> dict:
        return dict(super().portable(config), encoder=portable_of(self.encoder, config["encoder"]))
