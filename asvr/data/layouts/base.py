"""Which visual tokens an image gets, and in which order: decided by its size, on the CPU, before it is encoded.

Legend: ``I`` crops, ``N`` cells of a crop (the most visual tokens that the encoder gives of one), ``L`` tokens of an
image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from asvr.base.text import source_of_class
from asvr.data.transforms import ASPECTS
from asvr.registry import LAYOUTS

Size = tuple[int, int]  # width and height in pixels, as PIL has them
Grid = tuple[int, int]  # rows and columns of cells


@dataclass(frozen=True, eq=False)
class Layout:
    """The tokens of one image, in the order in which the LLM reads them.

    tokens_L: int64. A visual token is its cell's flat index into (crops, N); ``-1 - k`` is the separator
        ``k``, a learned row that stands between visual tokens.
    grids: rows and columns of each crop's cells, which are the first ``rows * columns`` of its ``N``.
    regular: True where the tokens are all cells of one crop in their order.
    """

    tokens_L: np.ndarray
    grids: tuple[Grid, ...]
    regular: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.tokens_L)

    @property
    def num_crops(self) -> int:
        return len(self.grids)

    @property
    def num_visual(self) -> int:
        """Tokens without the separators."""
        return len(self.tokens_L) if self.regular else int((self.tokens_L >= 0).sum())


class ImageLayout:
    """How an image becomes crops, each of which the encoder sees as an image of its own, and what tokens they get.

    Called with an image's size (width, height) it gives its `Layout`. It works in the data loader's processes: it may
    hold numbers, no weights. encoder: injected; what is taken of it is its grid, its cells and its transform.
    num_separators: kinds of separators, see `Layout`; the model learns a row for each. aspects: the values of
        ``data.image_aspect`` that it goes with. first_is_whole: whether the first crop shows the whole image, so that
        a map of it is one of the image.
    """

    num_separators: int = 0
    aspects: tuple[str, ...] = ASPECTS
    first_is_whole: bool = False

    def __init__(self, *, encoder):
        self.grid, self.num_cells, self.transform = tuple(encoder.grid), encoder.num_tokens, encoder.transform

    def __call__(self, size: Size) -> Layout:
        raise NotImplementedError(f"{type(self).__name__} must lay out the tokens of an image of a given size")

    def crops(self, image: Image.Image) -> list[Image.Image]:
        """As many as `Layout.grids` has, in their order."""
        raise NotImplementedError(f"{type(self).__name__} must cut an image into crops")

    def largest(self) -> Layout:
        """Of the image that takes most tokens; memory and FLOPs are counted for it."""
        raise NotImplementedError(f"{type(self).__name__} must tell the most tokens that an image takes")

    @property
    def fixed(self) -> Layout | None:
        """The one layout of all images; None where it depends on their sizes, which are read from their files then."""
        return None

    @property
    def per_image(self) -> "int | ImageLayout":
        """What datasets get as ``num_image_tokens``: a number where all images take as many tokens, else this."""
        return self if self.fixed is None else self.fixed.num_tokens

    def cells_key(self) -> str:
        """What decides the crops, and which of their cells have a token: by default all that it holds, and the source
        of its class. Tokenizers that are fitted on those cells are named by it."""
        return f"{source_of_class(type(self))} {self!r}"

    def crops_key(self) -> str:
        """What decides the crops: caches are named by it."""
        return self.cells_key()

    def __repr__(self) -> str:
        own = {key: value for key, value in vars(self).items() if key != "transform"}
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in sorted(own.items()))})"


@LAYOUTS.register_module()
class WholeImage(ImageLayout):
    """An image is one crop, and its tokens are the encoder's in raster order. They are as many for every image, unless
    the encoder reads images in their own resolution: its transform has ``grid_of(size)`` then."""

    first_is_whole = True

    def __call__(self, size: Size | None = None) -> Layout:
        return self.fixed or _one_crop(self.transform.grid_of(size), regular=False)

    def crops(self, image: Image.Image) -> list[Image.Image]:
        return [image]

    def largest(self) -> Layout:
        return self.fixed or _one_crop((1, self.num_cells), regular=False)

    @property
    def fixed(self) -> Layout | None:
        if hasattr(self.transform, "grid_of"):
            return None
        return _one_crop(self.grid, self.num_cells, regular=True)


@lru_cache(maxsize=4096)
def _one_crop(grid: Grid, num_tokens: int | None = None, *, regular: bool) -> Layout:
    return Layout(np.arange(num_tokens or grid[0] * grid[1]), (grid,), regular)


def tokens_of_images(num_image_tokens: int | Sequence[int], images: int) -> list[int]:
    """Of each image: the number that all have, or its own."""
    return [num_image_tokens] * images if isinstance(num_image_tokens, int) else list(num_image_tokens)


def crop_keys(key: str, num_crops: int) -> list[str]:
    """The keys of an image's crops, by which caches know them; of an image that is one crop its own. (No name of a file
    holds NUL.)"""
    return [key, *(f"{key}\0{number}" for number in range(1, num_crops))]


def build_layout(model: dict, encoder) -> ImageLayout:
    """Of the config of a model, whose ``layout`` may be left out."""
    return LAYOUTS.build(layout_config(model), default_args=dict(encoder=encoder))


def layout_config(model: dict) -> dict:
    """The entry of a model's config, filled in where it is left out."""
    return dict(model.get("layout") or dict(type=WholeImage.__name__))
