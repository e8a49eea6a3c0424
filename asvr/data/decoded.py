"""A cache of decoded images, for images that are used several times within a short time."""

from collections import OrderedDict
from functools import partial

from PIL import Image

from asvr.data.batch import Batch
from asvr.data.collate import Collate
from asvr.data.image_sources import RenderedImage, Source
from asvr.data.images import open_image
from asvr.data.refusals import Refusal

LIMIT = 512 * 1024**2  # bytes: some 550 images of 640 x 480 pixels


class DecodedOnce:
    """A collate function that keeps the images it decoded last, by their keys, up to ``limit`` bytes.

    It opens no image that ``collate`` would not open, such as one with cached features.
    """

    def __init__(self, collate: Collate, *, limit: int = LIMIT):
        self.collate, self.limit = collate, limit
        self._images: OrderedDict[str, Image.Image] = OrderedDict()  # in the order of their last use
        self._bytes = 0

    def __call__(self, items: list) -> Batch:
        return self.collate([item if isinstance(item, Refusal) else self._remembered(item) for item in items])

    def _remembered(self, item: dict) -> dict:
        pairs = zip(item["image_keys"], item["images"], strict=True)
        return dict(item, images=[RenderedImage(key, partial(self._open, key, source)) for key, source in pairs])

    def _open(self, key: str, source: Source) -> Image.Image:
        if key in self._images:
            self._images.move_to_end(key)
            return self._images[key]
        image = open_image(source, max_pixels=self.collate.max_pixels)
        self._images[key] = image
        self._bytes += _bytes_of(image)
        while self._bytes > self.limit:
            _, oldest = self._images.popitem(last=False)
            self._bytes -= _bytes_of(oldest)
        return image


def _bytes_of(image: Image.Image) -> int:
    return 4 * image.width * image.height  # PIL keeps RGB in four bytes a pixel
