"""Blocks of visual tokens to predict from the rest of an image, drawn as in I-JEPA (arXiv 2301.08243).

Legend: ``I`` images, ``N`` visual tokens of an image, ``K`` blocks of an image, ``V`` visual tokens in the rows.
"""

import math
from dataclasses import dataclass

import numpy as np

TRIES = 20  # attempts to leave enough context; after them one block fewer is drawn


@dataclass(frozen=True)
class Blocks:
    """How the blocks of an image, and the context from which they are predicted, are drawn.

    blocks: ``K``, the number of blocks, which may overlap. scale: the share of the image that a block takes, drawn
    between two numbers. aspect: the ratio of a block's height to its width, drawn between two numbers. context: the
    share of the image that the context takes before the blocks are removed from it. min_context: the smallest number of
    tokens of a context.

    The defaults are those of the released code of JARVIS (``src/train/args.py``).
    """

    blocks: int = 4
    scale: tuple[float, float] = (0.15, 0.2)
    aspect: tuple[float, float] = (0.75, 1.5)
    context: tuple[float, float] = (0.85, 1.0)
    min_context: int = 10

    def check(self, key: str, grid: tuple[int, int]) -> None:
        """Raise ``ValueError``, which names ``key``, for values that are impossible on this grid."""
        if not isinstance(self.blocks, int) or not 1 <= self.blocks <= 32:
            raise ValueError(f"{key}.blocks={self.blocks!r}: expected 1 to 32")
        for name, high in dict(scale=1, aspect=math.inf, context=1).items():
            low, top = getattr(self, name)
            if not 0 < low <= top <= high:
                raise ValueError(
                    f"{key}.{name}={(low, top)}: expected two numbers above 0 and up to {high}, the smaller one first"
                )
        left = math.prod(grid) - max(math.prod(_sides(grid, self.scale[1], ratio)) for ratio in (*self.aspect, 1.0))
        if not 1 <= self.min_context <= left:
            raise ValueError(
                f"{key}.min_context={self.min_context!r}: expected 1 to {left}, since one block leaves {left} of "
                f"{math.prod(grid)} tokens"
            )

    def draw(self, images: int, grid: tuple[int, int], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw block_IKN and context_IN, bool.

        All blocks of a call have the same size, as in I-JEPA. A block that would leave too little context is empty."""
        size = _size(generator, grid, self.scale, self.aspect)
        own = _size(generator, grid, self.context, (1.0, 1.0))
        found = [self._of_image(grid, size, own, generator) for _ in range(images)]
        shape = (images, self.blocks, math.prod(grid))
        block_IKN = np.array([blocks for blocks, _ in found]).reshape(shape)
        return block_IKN, np.array([context for _, context in found]).reshape(images, shape[-1])

    def _of_image(self, grid: tuple, size: tuple, own: tuple, generator: np.random.Generator) -> tuple:
        for count in range(self.blocks, 0, -1):
            for _ in range(TRIES):
                block_KN = np.zeros((self.blocks, math.prod(grid)), dtype=bool)
                for k in range(count):
                    block_KN[k] = _place(generator, grid, size)
                context_N = _place(generator, grid, own) & ~block_KN.any(0)
                if context_N.sum() >= self.min_context:
                    return block_KN, context_N
        return block_KN, ~block_KN.any(0)  # one block always leaves enough of the whole image, see `check`


def _size(generator: np.random.Generator, grid: tuple[int, int], scale: tuple, aspect: tuple) -> tuple[int, int]:
    """Draw the numbers of rows and columns of a block."""
    return _sides(grid, generator.uniform(*scale), generator.uniform(*aspect))


def _sides(grid: tuple[int, int], share: float, ratio: float) -> tuple[int, int]:
    """Return the rows and columns of a block with this share of an image and this ratio, rounded to whole numbers."""
    area = math.prod(grid) * share
    exact = math.sqrt(area * ratio), math.sqrt(area / ratio)
    return tuple(max(1, min(round(side), most)) for side, most in zip(exact, grid, strict=True))


def _place(generator: np.random.Generator, grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Draw the position of a block of this size in a grid. Return it as (N,) bool."""
    found = np.zeros(grid, dtype=bool)
    top, left = (generator.integers(whole - side + 1) for whole, side in zip(grid, size, strict=True))
    found[top : top + size[0], left : left + size[1]] = True
    return found.reshape(-1)


def block_bits(block_IKN: np.ndarray, context_IN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the query bits and key bits of each token, flat, see `asvr.models.visual_attention`.

    All tokens see the context. The tokens of a block also see one another. No token sees the others."""
    own_IN = (block_IKN * (2 << np.arange(block_IKN.shape[1], dtype=np.int64))[:, None]).sum(1)
    return (own_IN | 1).reshape(-1), (own_IN | context_IN).reshape(-1)
