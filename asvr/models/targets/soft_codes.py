"""Soft codes as a reconstruction target: several near codes share the target of a token, by their distances.

Legend: ``I`` images, ``N`` visual tokens of an image on the encoder's grid, ``M`` on the tokenizer's, ``D`` code depth,
``K`` codes that share a target, ``P`` supervised visual positions.
"""

import inspect

import torch
from torch import Tensor

from asvr.data.batch import Batch
from asvr.data.transforms import Pixels
from asvr.models.targets.base import TensorSpec
from asvr.models.targets.codes import CodeTarget
from asvr.models.targets.seen import Seen
from asvr.models.tokenizers.base import code_dtype, require_codes
from asvr.registry import TARGETS


@TARGETS.register_module()
class SoftCodeTarget(CodeTarget):
    """`CodeTarget` with soft labels: near codes are partly right too (RQ-VAE, https://arxiv.org/abs/2203.01941).

    At each depth, a code ``e`` has the probability softmax(-|r - e|^2 / temperature). ``r`` is the residual that the
    codes of the depths before leave.

    temperature: in squared units of the features that are quantised. The metric ``entropy`` (nats, for each depth) says
        how soft the codes are: 0 is hard.
    top: how many codes of each depth are kept, the most probable ones. Their probabilities are divided by their sum.

    The other arguments are those of `CodeTarget`. The loss must take ``soft``, as `CodeCrossEntropy` does. The head
    still gets the nearest codes of the depths before, and ``correct`` counts the nearest codes. Probabilities are
    rounded to float16, cached or not. A cache keeps ``4 K + 2`` bytes (``6 K + 4`` above 32,768 codes) for each token
    and depth.

    Raises ``ValueError`` if the tokenizer or the loss does not support soft codes, or a number is impossible.
    """

    def __init__(self, *, temperature: float, top: int = 8, **own):
        super().__init__(**own)
        smallest = min(self.tokenizer.codebook_sizes)
        if temperature <= 0:
            raise ValueError(f"{self.key}.temperature={temperature}: expected a number above 0")
        if not 1 <= top <= smallest:
            raise ValueError(f"{self.key}.top={top}: expected 1 to {smallest}, the codes of the smallest codebook")
        if not self.tokenizer.softens:
            raise ValueError(
                f"{self.key}.tokenizer: {type(self.tokenizer).__name__} has no encode_soft(), which soft codes need: "
                "use a SemanticTokenizer or a PixelTokenizer, or type='CodeTarget'"
            )
        if "soft" not in inspect.signature(self.criterion.forward).parameters:
            raise ValueError(
                f"{self.key}.loss: {type(self.criterion).__name__}.forward() takes no `soft`, the codes that share a "
                "target and their shares: use CodeCrossEntropy, or type='CodeTarget'"
            )
        self.options = dict(temperature=temperature, top=top)
        self.metrics = dict(self.metrics, entropy=(self.tokenizer.depth,))

    def truth_spec(self) -> dict[str, TensorSpec]:
        codes = super().truth_spec()["codes"]
        shape = (*codes.shape, self.options["top"])
        return dict(codes=codes, ids=TensorSpec(shape, codes.dtype), shares=TensorSpec(shape, torch.float16))

    def truth(self, pixels: dict[str, Pixels], features_INE: Tensor | None) -> dict[str, Tensor]:
        """Return the nearest ``codes`` (I, M, D), and ``ids`` and ``shares`` (I, M, D, K) of the most probable ones."""
        if self.shares_encoder:
            codes, ids, shares = self.tokenizer.quantize_soft(features_INE, **self.options)
        else:
            codes, ids, shares = self.tokenizer.encode_soft(pixels[self.name], **self.options)
        return dict(codes=codes, ids=ids, shares=shares.half())

    def to_cache(self, truth: dict[str, Tensor]) -> dict[str, Tensor]:
        sizes, what = self.tokenizer.codebook_sizes, f"soft codes of target {self.name!r}"
        ids = require_codes(truth["ids"].transpose(-1, -2), what, sizes).transpose(-1, -2)
        return dict(super().to_cache(truth), ids=ids.to(code_dtype(max(sizes))), shares=truth["shares"].cpu())

    def loss(self, seen: Seen, truth: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss in nats and the metrics, each (D,).

        ``correct``: how often the nearest code has the largest logit. ``entropy``: the entropy of the shares."""
        source_P, token_P = self.places(seen)
        codes_PD = self.codes_by_cell(truth, seen.batch).flatten(0, 1)
        ids_PDK, shares_PDK = (self._by_cell(truth[name], seen.batch) for name in ("ids", "shares"))
        if token_P is not None:
            codes_PD, ids_PDK, shares_PDK = codes_PD[token_P], ids_PDK[token_P], shares_PDK[token_P]
        shares_PDK = shares_PDK.float()
        shares_PDK = shares_PDK / shares_PDK.sum(-1, keepdim=True)
        states_PDW = self.states(seen.hidden[self.tap][source_P], codes_PD, token_P)
        loss, correct_D = self.criterion(states_PDW, self.classifiers, codes_PD, soft=(ids_PDK.long(), shares_PDK))
        entropy_D = -torch.special.xlogy(shares_PDK, shares_PDK).sum((0, 2))
        return loss, dict(correct=correct_D, entropy=entropy_D)

    def _by_cell(self, values_IMDK: Tensor, batch: Batch) -> Tensor:
        """Return the values (I*N, D, K) of each cell of the encoder."""
        found = self.to_cells(self.to_encoder_grid(values_IMDK.flatten(2)), batch)
        return found.flatten(0, 1).unflatten(1, values_IMDK.shape[2:])
