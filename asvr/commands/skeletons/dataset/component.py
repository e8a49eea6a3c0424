"""A data set of your own. Its images are painted here; for files, see `image`."""

from functools import partial

from PIL import Image

from asvr.data.image_sources import RenderedImage
from asvr.data.records import ConversationDataset
from asvr.registry import DATASETS

COLOURS = ("red", "green", "blue", "yellow", "black", "white")
SIDE = 64  # pixels of an image


@DATASETS.register_module()
class MyComponent(ConversationDataset):
    """Images of one colour, and the question which one it is.

    count: how many records. first: the number of the first one; other numbers are other records.
    """

    source = "my_component"  # how messages call the data set

    def __init__(self, *, count: int, first: int = 0, **kwargs):
        super().__init__(**kwargs)  # text tokenizer, template and limits, which the library gives
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def record(self, i: int) -> dict:
        """Record i in LLaVA's format; the same i is always the same record. Accuracy is reported by category."""
        colour = COLOURS[(self.first + i) % len(COLOURS)]
        question = {"from": "human", "value": "<image>\nwhich colour?"}
        return dict(image=colour, conversations=[question, {"from": "gpt", "value": colour}], category=colour)

    def image(self, name: str) -> tuple[str, RenderedImage]:
        """The image that a record names: a key that no other image has, and where it is. For a file: str(path), path.
        (A partial function can be sent to the processes that load data.)"""
        return name, RenderedImage(f"my_component {name}", partial(Image.new, "RGB", (SIDE, SIDE), name))
