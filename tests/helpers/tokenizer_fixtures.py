import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from asvr.data.transforms import ImageTransform
from asvr.models.encoders.base import Encoder
from asvr.registry import ENCODERS


@ENCODERS.register_module(force=True)
class TinyPatchEncoder(Encoder):
    """A strided convolution with random weights."""

    def __init__(self, *, seed=0, width=8, side=16, load_weights=True):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 4, stride=4)
        if not self.conv.weight.is_meta:
            generator = torch.Generator().manual_seed(seed)
            for parameter in self.conv.parameters():
                nn.init.normal_(parameter, std=0.3, generator=generator)
        self.width, self.grid = width, (side // 4, side // 4)
        self.transform = ImageTransform(size=(side, side))

    def forward(self, pixels):
        return self.conv(pixels).flatten(2).transpose(1, 2)


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory):
    """48 images of a coloured square on a coloured ground."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(48):
        array = np.empty((32, 32, 3), np.uint8)
        array[:] = rng.integers(0, 256, 3)
        x, y = rng.integers(0, 20, 2)
        array[y : y + 12, x : x + 12] = rng.integers(0, 256, 3)
        (folder / f"{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(array).save(folder / f"{i % 2}" / f"{i:03}.png")
    return folder
