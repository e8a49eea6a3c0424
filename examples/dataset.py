"""A data set of your own: how many dots are there? Its images are drawn, so it needs no files.

A subclass of `ConversationDataset` gives the number of records, record ``i``, and the place of an image. The library
makes token ids, labels, questions and batches from them. ``asvr train examples/dataset``
"""

import random
from functools import partial

from PIL import Image, ImageDraw

from asvr.data.image_sources import RenderedImage
from asvr.data.records import ConversationDataset
from asvr.registry import DATASETS

SIZE, RADIUS = 64, 5


@DATASETS.register_module()
class Dots(ConversationDataset):
    """``count`` images with 1 to ``most`` dots. Their numbers begin at ``first``. Other numbers give other images.

    The library gives the arguments of the base class (text tokenizer, template, limits). Pass them on.
    """

    def __init__(self, *, count: int, first: int = 0, most: int = 4, **kwargs):
        super().__init__(**kwargs)
        if not 1 <= most <= 9:
            raise ValueError(f"Dots most={most}: expected 1 to 9")
        self.count, self.first, self.most = count, first, most
        self.source = "dots"  # the name of this data set in messages

    def __len__(self) -> int:
        return self.count

    def record(self, i: int) -> dict:
        """A record in LLaVA's form. Each call makes it again. Accuracy is reported by ``category``."""
        number = len(self.places(self.first + i))
        question = {"from": "human", "value": "<image>\nhow many dots are there?"}
        answer = {"from": "gpt", "value": str(number)}
        return dict(image=str(self.first + i), conversations=[question, answer], category=f"{number} dots")

    def image(self, name: str) -> tuple[str, RenderedImage]:
        """The key of an image in caches, and the place of the image. For a file return ``str(path), path``."""
        places = self.places(int(name))
        return f"dots {name}", RenderedImage(f"dots {places}", partial(draw, places))

    def places(self, number: int) -> list[tuple[int, int]]:
        """The places of the dots of an image. Each dot is in a cell of its own."""
        draws = random.Random(number)
        cells = draws.sample(range(9), draws.randint(1, self.most))
        return [(21 * (cell % 3) + draws.randint(6, 15), 21 * (cell // 3) + draws.randint(6, 15)) for cell in cells]


def draw(places: list[tuple[int, int]]) -> Image.Image:
    image = Image.new("RGB", (SIZE, SIZE), "white")
    for x, y in places:
        ImageDraw.Draw(image).ellipse((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), fill="black")
    return image
