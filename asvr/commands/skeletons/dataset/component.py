"""A data set of your own. It generates its images; for image files, see `image`."""

from functools import partial

from PIL import Image

from asvr.data.image_sources import RenderedImage
from asvr.data.records import ConversationDataset
from asvr.registry import DATASETS

COLOURS = ("red", "green", "blue", "yellow", "black", "white")
SIDE = 64  # pixels of an image


@DATASETS.register_module()
class MyComponent(ConversationDataset):
    """Images of one colour. The question is which colour it is.

    count: the number of records. first: the number of the first record; another number gives other records.
    """

    source = "my_component"  # the name of the data set in messages

    def __init__(self, *, count: int, first: int = 0, **kwargs):
        super().__init__(**kwargs)  # the library gives these: text tokenizer, template and limits
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def record(self, i: int) -> dict:
        """Record i in LLaVA's format. The same i must always give the same record. Accuracy is reported by category."""
        colour = COLOURS[(self.first + i) % len(COLOURS)]
        question = {"from": "human", "value": "<image>\nwhich colour?"}
        return dict(image=colour, conversations=[question, {"from": "gpt", "value": colour}], category=colour)

    def image(self, name: str) -> tuple[str, RenderedImage]:
        """The image of a name in a record. Return a key that no other image has, and the image's source.

        For a file, return str(path), path. (A partial function can be sent to the processes that load data.)"""
        return name, RenderedImage(f"my_component {name}", partial(Image.new, "RGB", (SIDE, SIDE), name))
