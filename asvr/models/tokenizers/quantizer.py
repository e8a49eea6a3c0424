"""Residual vector quantisation: a vector becomes D codes. Each code describes what the codes before it left over.

Legend: ``P`` vectors, ``D`` code depth, ``V`` codes in a codebook, ``C`` code width, ``K`` codes that share a target.

Residual quantisation is as in RQ-VAE (https://arxiv.org/abs/2203.01941). The k-means initialisation and the EMA updates
are as in SoundStream (https://arxiv.org/abs/2107.03312).
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asvr.base.precision import full_float32
from asvr.models.tokenizers.base import has_numbers

# Size in bytes of the largest distance matrix. Rows are searched in chunks to stay below it.
DISTANCE_BYTES = 256 * 2**20


def nearest(x_PC: Tensor, codebook_VC: Tensor, *, memory: int = DISTANCE_BYTES) -> Tensor:
    """Return the index of the nearest code (squared distance) of each float32 row. In a tie it is the lowest index.

    memory: the most bytes that the matrix of distances may take.
    """
    squares_V = codebook_VC.square().sum(-1)
    rows = max(1, memory // (4 * len(codebook_VC)))
    # |x - e|^2 without |x|^2, which is the same for every code
    return torch.cat([torch.addmm(squares_V, x, codebook_VC.T, alpha=-2).argmin(-1) for x in x_PC.split(rows)])


def soft_codes(
    x_PC: Tensor,
    codes_P: Tensor,
    codebook_VC: Tensor,
    *,
    temperature: float,
    top: int,
    memory: int = DISTANCE_BYTES,
) -> tuple[Tensor, Tensor]:
    """Return the soft labels of RQ-VAE: ids_PK and shares_PK of the ``top`` nearest codes of each row.

    A code ``e`` has the probability softmax(-|x - e|^2 / temperature). shares_PK are the probabilities of the nearest
    codes, divided by their sum. codes_P: the `nearest` code of each row. It is always the first of ids_PK, also if
    another code is as near.
    """
    squares_V, found = codebook_VC.square().sum(-1), []
    rows = max(1, memory // (4 * len(codebook_VC)))
    for x, codes in zip(x_PC.split(rows), codes_P.split(rows), strict=True):
        distances_PV = torch.addmm(squares_V, x, codebook_VC.T, alpha=-2)  # without |x|^2, as above
        own_P1 = distances_PV.gather(1, codes[:, None])
        others = distances_PV.scatter(1, codes[:, None], -torch.inf).topk(top, largest=False)
        distances_PK = torch.cat([own_P1, others.values[:, 1:]], dim=1)
        found.append((others.indices, ((own_P1 - distances_PK) / temperature).softmax(-1)))
    ids, shares = zip(*found, strict=True)
    return torch.cat(ids), torch.cat(shares)


class Codebook(nn.Module):
    """A codebook with moving averages. weight: (V, C), the code vectors.

    share: each code's share of the vectors, an exponential moving average that sums to 1 (all zeros before fitting).
    The moving sum of a code's vectors is ``weight * share``, so it is not stored.
    """

    def __init__(self, *, size: int, width: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(size, width))
        self.register_buffer("share", torch.zeros(size))

    @torch.no_grad()
    def update(self, counts_V: Tensor, sums_VC: Tensor, decay: float) -> None:
        """Move the codes towards the means of one batch's vectors."""
        total = counts_V.sum()
        share_V = decay * self.share + (1 - decay) * counts_V / total
        sums_VC = decay * self.share[:, None] * self.weight + (1 - decay) * sums_VC / total
        seen = counts_V > 0
        self.weight[seen] = (sums_VC / share_V[:, None])[seen]
        self.share.copy_(share_V)

    @torch.no_grad()
    def restart(self, x_PC: Tensor, below: float, generator: torch.Generator) -> int:
        """Replace every code whose share is below ``below / V`` by a random row. Return how many were replaced."""
        dead = (self.share < below / len(self.share)).nonzero().squeeze(1)[: len(x_PC)]
        chosen = torch.randperm(len(x_PC), generator=generator)[: len(dead)].to(x_PC.device)
        self.weight[dead] = x_PC[chosen]
        self.share[dead] = 2 * below / len(self.share)  # time to win vectors before it counts as dead again
        return len(dead)


class ResidualQuantizer(nn.Module):
    """A greedy residual quantiser: ``r_0 = x``, ``c_d = argmin |r_d - e|^2``, ``r_{d+1} = r_d - e[c_d]``.

    codebook_size: ``V``, one number or one for each level. shared: whether all levels use one codebook. decay: decay of
    the moving averages in each step. dead_below: a code is dead if its share is less than this part of an equal share
    (``1 / V``). memory: see `nearest`. Arithmetic is in float32, whatever the input's dtype and autocast.
    """

    def __init__(
        self,
        *,
        depth: int,
        codebook_size: int | list[int],
        width: int,
        shared: bool = False,
        decay: float = 0.99,
        dead_below: float = 0.02,
        memory: int = DISTANCE_BYTES,
    ):
        super().__init__()
        sizes = [codebook_size] * depth if isinstance(codebook_size, int) else list(codebook_size)
        if depth < 1 or len(sizes) != depth or min(sizes) < 1:
            raise ValueError(
                f"codebook_size={codebook_size}, depth={depth}: expected a positive number, or one for each level"
            )
        if shared and len(set(sizes)) > 1:
            raise ValueError(f"shared=True needs one codebook_size for all levels, not {sizes}")
        if shared and sizes[0] < depth:
            raise ValueError(f"shared=True needs codebook_size >= depth, not {sizes[0]} < {depth}")
        self.sizes, self.width, self.shared = sizes, width, shared
        self.decay, self.dead_below, self.memory = decay, dead_below, memory
        books = sizes[:1] if shared else sizes
        self.codebooks = nn.ModuleList(Codebook(size=size, width=self.book_width) for size in books)
        self._fitted = False

    @property
    def book_width(self) -> int:
        """The width of the vectors in a codebook."""
        return self.width

    @property
    def depth(self) -> int:
        return len(self.sizes)

    @property
    def fitted(self) -> bool:
        """Whether every codebook is filled. The buffers are not read again after this was true once."""
        if not self._fitted:
            shares = [book.share for book in self.codebooks]
            self._fitted = has_numbers(shares[0]) and all(bool(share.any()) for share in shares)
        return self._fitted

    def book(self, level: int) -> Codebook:
        return self.codebooks[0 if self.shared else level]

    def levels(self, x_PC: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield (level, residual before, codes_P, residual after) from the first level to the last."""
        residual = x_PC
        for level in range(self.depth):
            weight_VC = self.book(level).weight
            codes_P = nearest(residual, weight_VC, memory=self.memory)
            after = residual - weight_VC[codes_P]
            yield level, residual, codes_P, after
            residual = after

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return the codes (..., D) of vectors (..., C), int64."""
        with full_float32(x.device):
            codes = [codes_P for _, _, codes_P, _ in self.levels(self._rows(x))]
        return torch.stack(codes, dim=-1).unflatten(0, x.shape[:-1])

    @torch.no_grad()
    def encode_soft(self, x: Tensor, *, temperature: float, top: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes (..., D) as `encode` does, and the `soft_codes` of each level: ids and shares (..., D, K)."""
        options = dict(temperature=temperature, top=top, memory=self.memory)
        with full_float32(x.device):
            found = [
                (codes_P, *soft_codes(before, codes_P, self.book(level).weight, **options))
                for level, before, codes_P, _ in self.levels(self._rows(x))
            ]
        return tuple(torch.stack(part, dim=1).unflatten(0, x.shape[:-1]) for part in zip(*found, strict=True))

    def embed(self, codes: Tensor) -> Tensor:
        """Return the code vectors (..., d, C) of codes (..., d). ``d`` may be less than ``D``."""
        return torch.stack([F.embedding(c, self.book(i).weight) for i, c in enumerate(codes.unbind(-1))], dim=-2)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors (..., C) that codes (..., d) stand for: the sums of their code vectors."""
        return self.embed(codes).sum(-2)

    @torch.no_grad()
    def kmeans(self, x: Tensor, *, iterations: int = 10, generator: torch.Generator, on_iteration=None) -> None:
        """Set the codebooks level by level from vectors (..., C), with Lloyd's k-means on each level's residuals.

        A shared codebook is filled in ``D`` parts. Each part comes from the residuals that the parts before leave.
        on_iteration: a function that is called after each iteration.
        """
        with full_float32(x.device):
            residual = self._rows(x)
            for level in range(self.depth):
                size = self.sizes[level]
                first, last = 0, size
                if self.shared:
                    first, last = level * size // self.depth, (level + 1) * size // self.depth
                book = self.book(level)
                centres = lloyd(residual, last - first, iterations, generator, self.memory, on_iteration)
                book.weight[first:last] = centres
                filled = book.weight[:last]
                codes_P = nearest(residual, filled, memory=self.memory)
                residual = residual - filled[codes_P]
                counts_V = torch.bincount(codes_P, minlength=size).float()
                if self.shared:
                    book.share.mul_(level / (level + 1)).add_(counts_V / counts_V.sum() / (level + 1))
                else:
                    book.share.copy_(counts_V / counts_V.sum())

    @torch.no_grad()
    def update(self, x: Tensor, *, generator: torch.Generator) -> int:
        """Run one EMA step on vectors (..., C), and restart dead codes. Return how many codes were restarted.

        It is bitwise reproducible on the CPU, and on CUDA under ``torch.use_deterministic_algorithms``.
        """
        assert self.fitted, "update() needs codebooks: call kmeans() first"
        with full_float32(x.device):
            statistics = [[0, 0, []] for _ in self.codebooks]
            for level, residual, codes_P, _ in self.levels(self._rows(x)):
                entry = statistics[0 if self.shared else level]
                counts_V, sums_VC = _assign(residual, codes_P, self.sizes[level])
                entry[0], entry[1] = entry[0] + counts_V, entry[1] + sums_VC
                entry[2].append(residual)
            restarted = 0
            for book, (counts_V, sums_VC, residuals) in zip(self.codebooks, statistics, strict=True):
                book.update(counts_V, sums_VC, self.decay)
                restarted += book.restart(torch.cat(residuals), self.dead_below, generator)
        return restarted

    @torch.no_grad()
    def statistics(self, x: Tensor) -> dict[str, list[float]]:
        """Measure how well the codes describe vectors (..., C). Each list has one number for each level.

        usage: per cent of the codes that occur. perplexity: exp of the entropy of the codes (at most V).
        relative_error: squared error after this level, divided by the squared error of the mean vector.
        """
        with full_float32(x.device):
            rows = self._rows(x)
            variance = (rows - rows.mean(0)).square().sum().clamp(min=torch.finfo(torch.float32).tiny)
            result = {"usage": [], "perplexity": [], "relative_error": []}
            for level, _, codes_P, after in self.levels(rows):
                usage, perplexity = code_usage(codes_P, self.sizes[level])
                result["usage"].append(usage)
                result["perplexity"].append(perplexity)
                result["relative_error"].append((after.square().sum() / variance).item())
        return result

    def _rows(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.width:
            raise ValueError(f"the vectors have width {x.shape[-1]}, but the quantizer has width {self.width}")
        return x.detach().reshape(-1, self.width).float()


def code_usage(codes: Tensor, size: int) -> tuple[float, float]:
    """Return the per cent of the ``size`` codes that occur in a tensor of codes, and the codes' perplexity."""
    share_V = torch.bincount(codes.flatten(), minlength=size).double() / codes.numel()
    entropy = -torch.special.xlogy(share_V, share_V).sum().item()
    return 100 * (share_V > 0).double().mean().item(), math.exp(entropy)


def _assign(x_PC: Tensor, codes_P: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return counts_V and sums_VC of the vectors of each code."""
    sums_VC = x_PC.new_zeros(size, x_PC.shape[1]).index_add_(0, codes_P, x_PC)
    return torch.bincount(codes_P, minlength=size).float(), sums_VC


def lloyd(x_PC: Tensor, size: int, iterations: int, generator: torch.Generator, memory: int, on_iteration) -> Tensor:
    """Run Lloyd's algorithm from random rows, and return the centres (size, C).

    A centre without vectors restarts at a vector that is drawn in proportion to its squared error, as in k-means++. So
    no code is lost to repeated rows, as long as there are enough different rows.
    """
    start = torch.randperm(len(x_PC), generator=generator)[:size]
    start = start.repeat(math.ceil(size / len(start)))[:size]  # fewer vectors than codes: some codes stay unused
    centres = x_PC[start.to(x_PC.device)].clone()
    for _ in range(iterations):
        codes_P = nearest(x_PC, centres, memory=memory)
        counts_V, sums_VC = _assign(x_PC, codes_P, size)
        empty = (counts_V == 0).nonzero().squeeze(1)
        errors_P = (x_PC - centres[codes_P]).square().sum(-1) if len(empty) else x_PC.new_zeros(1)
        centres = torch.where(counts_V[:, None] > 0, sums_VC / counts_V.clamp(min=1)[:, None], centres)
        draws = min(len(empty), int((errors_P > 0).sum()))
        if draws:
            chosen = torch.multinomial(errors_P.cpu(), draws, generator=generator)
            centres[empty[:draws]] = x_PC[chosen.to(x_PC.device)]
        if on_iteration is not None:
            on_iteration()
    return centres
