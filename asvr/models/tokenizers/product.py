"""Product quantisation: the channels of a vector are cut into D groups, and each group has its own codebook.

Legend: ``P`` vectors, ``D`` groups (the code depth), ``V`` codes in a codebook, ``C`` code width, ``G`` channels of a
group.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from asvr.base.precision import full_float32
from asvr.models.tokenizers.quantizer import ResidualQuantizer, lloyd, nearest


class ProductQuantizer(ResidualQuantizer):
    """A product quantiser: ``x = [x_1, ..., x_D]``, ``c_d = argmin |x_d - e|^2``. Codes do not depend on one another.

    This is multi-codebook quantisation (UniTok, https://arxiv.org/abs/2502.20321) without the networks around it. It
    can be seen as a residual quantiser whose code vectors are zero outside their group. `embed` returns such vectors,
    with all ``C`` channels. Their sum is the vector that the codes stand for.

    depth: ``D``, a divisor of width. The groups cannot share a codebook. The other arguments are those of
    `ResidualQuantizer`. In `statistics`, the ``relative_error`` of a level includes the channels of all later groups.
    """

    def __init__(self, *, depth: int, width: int, shared: bool = False, **kwargs):
        if shared:
            raise ValueError("quantizer='product' with shared=True: groups cannot share a codebook; set shared=False")
        if depth < 1 or width % depth:
            raise ValueError(
                f"quantizer='product' with depth={depth}: expected a divisor of the number of channels, {width}, "
                "so that all groups have the same size"
            )
        super().__init__(depth=depth, width=width, **kwargs)

    @property
    def book_width(self) -> int:
        return self.width // self.depth

    def levels(self, x_PC: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield (level, its group x_PG, codes_P, the residual of the whole vector after the codes so far)."""
        rest_PC = x_PC.clone()
        for level, x_PG in enumerate(x_PC.split(self.book_width, dim=1)):
            weight_VG = self.book(level).weight
            codes_P = nearest(x_PG, weight_VG, memory=self.memory)
            rest_PC[:, level * self.book_width : (level + 1) * self.book_width] -= weight_VG[codes_P]
            yield level, x_PG, codes_P, rest_PC

    def embed(self, codes: Tensor) -> Tensor:
        vectors, width = [], self.book_width
        for level, code in enumerate(codes.unbind(-1)):
            own = F.embedding(code, self.book(level).weight)
            vectors.append(F.pad(own, (level * width, self.width - (level + 1) * width)))
        return torch.stack(vectors, dim=-2)

    @torch.no_grad()
    def kmeans(self, x: Tensor, *, iterations: int = 10, generator: torch.Generator, on_iteration=None) -> None:
        """Set the codebooks from vectors (..., C), with Lloyd's k-means on each group."""
        with full_float32(x.device):
            for level, x_PG in enumerate(self._rows(x).split(self.book_width, dim=1)):
                book, size = self.book(level), self.sizes[level]
                book.weight.copy_(lloyd(x_PG, size, iterations, generator, self.memory, on_iteration))
                counts_V = torch.bincount(nearest(x_PG, book.weight, memory=self.memory), minlength=size).float()
                book.share.copy_(counts_V / counts_V.sum())


RESIDUAL = "residual"
QUANTIZERS = dict(residual=ResidualQuantizer, product=ProductQuantizer)


def build_quantizer(kind: str, **sizes) -> ResidualQuantizer:
    """Build a quantiser. kind: a name in `QUANTIZERS`. Raises ``ValueError`` for another name."""
    if kind not in QUANTIZERS:
        raise ValueError(f"SemanticTokenizer.quantizer={kind!r}: expected one of {', '.join(QUANTIZERS)}")
    return QUANTIZERS[kind](**sizes)
