"""The contract of a visual tokenizer: what turns a picture into discrete targets.

Legend: ``I`` images, ``N`` visual tokens of an image, ``D`` code depth, ``V`` codes in a codebook,
``C`` code width.
"""

from torch import Tensor

from asvr.data.transforms import ImageTransform
from asvr.models.component import Component


class VisualTokenizer(Component):
    """``encode(pixels (I, 3, h, w)) -> codes_IND`` (int64), always float32 inside, without gradients.

    codebook_sizes: ``V`` of each of the ``D`` levels. code_width: ``C``. grid: (rows, columns).
    transform: what turns a picture into pixels. fitted: False until the codebooks hold something.
    The constructor must also work under ``torch.device("meta")``.
    """

    codebook_sizes: list[int]
    code_width: int
    grid: tuple[int, int]
    transform: ImageTransform
    fitted: bool

    @property
    def depth(self) -> int:
        return len(self.codebook_sizes)

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def decodes(self) -> bool:
        """Whether `decode` turns codes into pixels."""
        return type(self).decode is not VisualTokenizer.decode

    def encode(self, pixels: Tensor) -> Tensor:
        """Return codes_IND for pixels (I, 3, h, w)."""
        raise NotImplementedError(f"{type(self).__name__} must turn pixels into codes_IND")

    def embed(self, codes: Tensor) -> Tensor:
        """Return the code vectors (..., D, C) of codes (..., D), one a level, not summed."""
        raise NotImplementedError(f"{type(self).__name__} must turn codes (..., D) into vectors (..., D, C)")

    def decode(self, codes: Tensor) -> Tensor:
        """Return pixels (I, 3, h, w) in [-1, 1] for codes_IND, where the tokenizer has a decoder."""
        raise ValueError(f"{type(self).__name__} has no decoder: its codes cannot be turned into pixels")
