"""The contract of a visual tokenizer, which turns an image into discrete codes.

Legend: ``I`` images, ``N`` visual tokens of an image, ``D`` code depth, ``V`` codes in a codebook,
``C`` code width, ``K`` codes that share a target.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from asvr.data.transforms import ImageTransform
from asvr.models.component import Component

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def require_integers(codes: Tensor, what: str) -> Tensor:
    """Return the codes as int64. Raises ``ValueError`` for a dtype that does not hold integers.

    Only the dtype is checked, so that nothing waits for the device."""
    if not isinstance(codes, Tensor) or codes.dtype not in INTEGERS:
        got = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
        raise ValueError(f"{what} are {got}: expected integers (torch.int64), the indices of code vectors")
    return codes.long()


def has_numbers(tensor: Tensor) -> bool:
    """Whether a tensor holds values: not on the meta device, and not while memory is planned or FLOPs are counted."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor) or torch.jit.is_tracing())


def code_dtype(size: int) -> torch.dtype:
    """Return the smallest dtype for the codes of a codebook of ``size``."""
    return torch.int16 if size <= 2**15 else torch.int32


def require_codes(codes_IND: Tensor, what: str, sizes: Sequence[int]) -> Tensor:
    """Return codes (..., D) on the CPU, as int64.

    sizes: the size of each level's codebook. Raises ``ValueError`` if a code is not an integer or is outside its
    level's codebook."""
    codes_IND = require_integers(codes_IND, what).cpu()
    if codes_IND.shape[-1] != len(sizes):
        raise ValueError(f"{what} have {codes_IND.shape[-1]} levels, expected {len(sizes)}")
    outside = (codes_IND < 0) | (codes_IND >= torch.tensor(sizes))
    if outside.any():
        code, level = codes_IND[outside][0].item(), outside.nonzero()[0, -1].item()
        raise ValueError(
            f"{what}: the code {code} of level {level} is not in its codebook; expected 0 to {sizes[level] - 1}"
        )
    return codes_IND


class VisualTokenizer(Component):
    """A visual tokenizer: ``encode(pixels (I, 3, h, w)) -> codes_IND`` (int64).

    It computes in float32 and without gradients. codebook_sizes: ``V`` of each of the ``D`` levels. code_width: ``C``.
    grid: (rows, columns) of the codes. transform: it turns an image into pixels. fitted: False while the codebooks are
    empty. The constructor must also work under ``torch.device("meta")``.
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
        raise NotImplementedError(f"{type(self).__name__} needs a method encode() from pixels to codes_IND")

    @property
    def softens(self) -> bool:
        """Whether the tokenizer has `encode_soft`."""
        return type(self).encode_soft is not VisualTokenizer.encode_soft

    def encode_soft(self, pixels: Tensor, *, temperature: float, top: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes_IND as `encode` does, and for each level the ids (I, N, D, K) and shares of the nearest codes.

        See `asvr.models.tokenizers.quantizer.soft_codes`. Each level depends on the codes of the levels before. top:
        ``K``. A tokenizer that quantises an encoder's features also has ``quantize_soft(features_INE, ...)``."""
        raise ValueError(
            f"{type(self).__name__} has no encode_soft(): its codes have no distances, which soft codes need"
        )

    def embed(self, codes: Tensor) -> Tensor:
        """Return the code vectors (..., D, C) of codes (..., D): one for each level, not summed."""
        raise NotImplementedError(
            f"{type(self).__name__} needs a method embed() from codes (..., D) to vectors (..., D, C)"
        )

    def decode(self, codes: Tensor) -> Tensor:
        """Return pixels (I, 3, h, w) in [-1, 1] for codes_IND, if the tokenizer has a decoder."""
        raise ValueError(f"{type(self).__name__} has no decoder: its codes cannot be turned into pixels")
