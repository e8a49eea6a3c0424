"""Discrete codes as a reconstruction target, with a visual tokenizer, a head and a loss.

Legend: ``I`` images, ``N`` visual tokens of an image on the encoder's grid, ``M`` on the tokenizer's,
``D`` code depth, ``P`` supervised visual positions, ``H`` LLM width.
"""

import inspect
import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from asvr.base.log_once import log_once
from asvr.data.batch import Batch
from asvr.data.layouts import ImageLayout
from asvr.data.transforms import ImageTransform, Pixels
from asvr.models.component import fingerprint_of, portable_of
from asvr.models.encoders.base import grids_of
from asvr.models.heads.base import places_of, why_whole_images
from asvr.models.targets.base import Target, TensorSpec
from asvr.models.targets.seen import Seen
from asvr.models.tokenizers.base import VisualTokenizer, code_dtype, require_codes, require_integers
from asvr.registry import HEADS, LOSSES, TARGETS, VISUAL_TOKENIZERS


class _Codes:
    """The codes to predict, made by a tokenizer (``teacher``).

    shares_encoder: whether the tokenizer quantises the features of the model's own encoder. There is no constructor
    here, because the config fields of a target are read from the constructors of its classes.
    """

    name: str
    teacher: VisualTokenizer
    shares_encoder: bool

    @property
    def tokenizer(self) -> VisualTokenizer:
        return self.teacher

    def views(self) -> dict[str, ImageTransform]:
        return {} if self.shares_encoder else {self.name: self.tokenizer.transform}

    def truth_spec(self) -> dict[str, TensorSpec]:
        shape = self.tokenizer.num_tokens, self.tokenizer.depth
        return dict(codes=TensorSpec(shape, code_dtype(max(self.tokenizer.codebook_sizes))))

    def truth(self, pixels: dict[str, Pixels], features_INE: Tensor | None) -> dict[str, Tensor]:
        """Return ``codes`` (I, M, D) on the tokenizer's grid, made from the encoder's features or from pixels."""
        if self.shares_encoder:
            return dict(codes=self.tokenizer.quantize(features_INE))
        return dict(codes=self.tokenizer.encode(pixels[self.name]))

    def to_cache(self, truth: dict[str, Tensor]) -> dict[str, Tensor]:
        codes = require_codes(truth["codes"], f"codes of target {self.name!r}", self.tokenizer.codebook_sizes)
        return dict(codes=codes.to(self.truth_spec()["codes"].dtype))

    def cache_key(self) -> str:
        own = f"{fingerprint_of(self.tokenizer)} {self.tokenizer.transform} {self.tokenizer.grid}"
        return own if type(self) in (CodeTruth, CodeTarget) else f"{own} {Target.cache_key(self)}"


class CodeTruth(_Codes):
    """The part of a `CodeTarget` that needs neither an LLM nor a head.

    name: the target's name. tokenizer: it makes the codes."""

    def __init__(self, *, name: str, tokenizer: VisualTokenizer, encoder):
        self.name, self.teacher = name, tokenizer
        self.shares_encoder = shares_encoder(tokenizer, encoder)


@TARGETS.register_module()
class CodeTarget(_Codes, Target):
    """The discrete codes of a visual tokenizer, which a head predicts depth by depth. This is ASVR's target.

    tokenizer: config of the visual tokenizer that makes the codes. head: config of the head that predicts them.
    loss: config of the loss. None: `CodeCrossEntropy`. tap: which hidden state the head reads, see `Target`.
    resample: ``nearest``: each encoder position takes the code of the tokenizer's cell in which its centre lies. None:
        the two grids must be equal.
    fit: arguments of the tokenizer's ``fit()``. With them it is fitted before training (`asvr.engine.prepare`).

    Attributes. index_N: for each encoder position, the tokenizer's position; None if the grids are equal.
    shares_encoder: whether the tokenizer quantises the features of the model's own encoder. asked: the optional
    arguments that the head's ``forward`` takes, see `Head`. whole_images: why the head needs all tokens of an image at
    once, as text; None if it does not.

    Raises ``ValueError`` if the grids differ and ``resample`` is not set, or if ``tap`` is not a layer of the LLM.
    """

    def __init__(
        self,
        *,
        tokenizer: dict,
        head: dict,
        encoder,
        llm,
        shift: int | None = None,
        loss: dict | None = None,
        tap: int = -1,
        resample: str | None = None,
        fit: dict | None = None,
        load_weights: bool = True,
        **own,
    ):
        super().__init__(encoder=encoder, llm=llm, taps=(tap,), shift=shift, load_weights=load_weights, **own)
        key, self.tap, self.hidden_size = self.key, tap, llm.hidden_size
        if tap == llm.num_layers:
            _log_last_tap(key, tap)
        self.teacher = build_tokenizer(tokenizer, encoder, load_weights)
        self.shares_encoder = shares_encoder(self.teacher, encoder)
        self.criterion = LOSSES.build(loss or dict(type="CodeCrossEntropy"))
        weights = getattr(self.criterion, "depth_weights", None)
        depth = self.tokenizer.depth
        if weights is not None and len(weights) != depth:
            raise ValueError(
                f"{key}.loss.depth_weights has {len(weights)} entries, the codes have depth {depth}: give one weight "
                "for each depth"
            )
        sizes = dict(hidden_size=llm.hidden_size, code_width=self.tokenizer.code_width)
        self.head = HEADS.build(head, default_args=dict(sizes, codebook_sizes=self.tokenizer.codebook_sizes))
        some_alone = self.positions.supervise is not None  # then the head gets only some tokens of an image
        self.asked = places_of(self.head)
        self.whole_images = None
        if (shift == 1 or some_alone) and not self.asked:
            self.whole_images = why_whole_images(self.head, **sizes)
        if self.whole_images and some_alone:
            raise ValueError(
                f"{key}.supervise={self.positions.supervise}: {type(self.head).__name__} {self.whole_images}, but "
                "would get only some of its tokens: let its forward() take image_P and cell_P (the image and the cell "
                "of each row), or set supervise=None"
            )
        self.native = hasattr(encoder.transform, "grid_of")  # each image has a grid of its own
        if self.native and not self.shares_encoder and resample != "nearest":
            raise ValueError(
                f"{key}: the encoder reads images in their own resolution, so its grid is not the tokenizer's: set "
                "resample='nearest' (each encoder position takes the code of the cell in which its centre lies)"
            )
        self.index_N = None if self.shares_encoder or self.native else _resample(key, self.tokenizer, encoder, resample)
        self.metrics = dict(correct=(depth,))

    # The contract of a target ------------------------------------------------------------------------------

    def loss(self, seen: Seen, truth: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss in nats, and ``correct``: the number of right codes at each depth (D,)."""
        source_P, token_P = self.places(seen)
        codes_PD = self.codes_by_cell(truth, seen.batch).flatten(0, 1)
        codes_PD = codes_PD if token_P is None else codes_PD[token_P]
        states_PDW = self.states(seen.hidden[self.tap][source_P], codes_PD, token_P)
        loss, correct_D = self.criterion(states_PDW, self.classifiers, codes_PD)
        return loss, dict(correct=correct_D)

    @property
    def classifiers(self) -> Sequence[nn.Module]:
        """The layers that turn the head's states into logits, one for each code depth."""
        return self.head.classifiers

    @property
    def decodes(self) -> bool:
        return self.tokenizer.decodes

    def describe(self) -> str:
        return f"{self.tokenizer.depth} x {max(self.tokenizer.codebook_sizes)} codes"

    def portable(self, config: dict) -> dict:
        own = Target.portable(self, config)
        head = portable_of(self.head, config["head"])
        return dict(own, tokenizer=portable_of(self.tokenizer, config["tokenizer"]), head=head)

    def check_layout(self, layout: ImageLayout) -> None:
        if layout.fixed is not None or self.asked:
            return
        sizes = dict(hidden_size=self.hidden_size, code_width=self.tokenizer.code_width)
        if why := why_whole_images(self.head, **sizes):
            raise ValueError(
                f"{self.key}.head: {type(self.head).__name__} {why}, but with {type(layout).__name__} some images lack "
                "some tokens: let its forward() take image_P and cell_P (the image and the cell of each row)"
            )

    # Codes and predictions ---------------------------------------------------------------------------------

    def codes(self, truth: dict[str, Tensor]) -> Tensor:
        """Return codes_IND on the encoder's grid, int64.

        If each image has its own grid, they are still on the tokenizer's grid: use `codes_by_cell`."""
        return self.to_encoder_grid(require_integers(truth["codes"], f"codes of target {self.name!r}"))

    def codes_by_cell(self, truth: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return codes_IND: the codes of each cell of the encoder."""
        return self.to_cells(self.codes(truth), batch)

    def to_cells(self, values_INX: Tensor, batch: Batch) -> Tensor:
        """Bring the result of `to_encoder_grid` to the encoder's cells if each image has its own grid."""
        if not self.native or self.shares_encoder:
            return values_INX
        found = (_nearest(tuple(self.tokenizer.grid), tuple(grid)) for grid in batch.cells.grids)
        index_IN = torch.tensor([own + [0] * (self.num_tokens - len(own)) for own in found], device="cpu")
        if values_INX.is_cuda:  # a copy from memory that is not pinned would make the CPU wait
            index_IN = index_IN.pin_memory()
        index_IN = index_IN.to(values_INX.device, non_blocking=True)
        return values_INX.gather(1, index_IN[..., None].expand(-1, -1, values_INX.shape[-1]))

    def states(self, hidden_PH: Tensor, codes_PD: Tensor, token_P: Tensor | None = None) -> Tensor:
        """Return the head's states_PDW. token_P: the rows' flat indices in (I*N), None if the rows are all tokens."""
        if token_P is not None and self.whole_images:
            raise ValueError(
                f"target {self.name!r}: {type(self.head).__name__} {self.whole_images}, but with shift=1 the first "
                "token has no hidden state if an image begins its sample: let its forward() take image_P and cell_P "
                "(the image and the cell of each row), or set shift=0"
            )
        with torch.no_grad():
            vectors_PDC = self.tokenizer.embed(codes_PD)
        return self.run_head(hidden_PH.float(), vectors_PDC, token_P)  # a frozen LLM may be in half precision

    def run_head(self, hidden_PH: Tensor, vectors_PDC: Tensor, token_P: Tensor | None = None) -> Tensor:
        """Call the head. It also gets the image and the cell of each row if its ``forward`` takes them."""
        if not self.asked:
            return self.head(hidden_PH, vectors_PDC)
        if token_P is None:
            token_P = torch.arange(hidden_PH.shape[0], device=hidden_PH.device)
        known = dict(image_P=token_P // self.num_tokens, cell_P=token_P % self.num_tokens)
        return self.head(hidden_PH, vectors_PDC, **{name: known[name] for name in self.asked})

    @torch.no_grad()
    def predict(self, hidden_PH: Tensor, codes_PD: Tensor, token_P: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the most probable code at each depth, and its probability, both (P, D).

        codes_PD: the true codes. Each depth gets the true codes of the depths before it."""
        states_PDW = self.states(hidden_PH, codes_PD, token_P)
        codes, probabilities = [], []
        for d, classifier in enumerate(self.classifiers):
            logits_PV = classifier(states_PDW[:, d]).float()
            largest = logits_PV.max(-1)
            codes.append(largest.indices)
            probabilities.append((largest.values - logits_PV.logsumexp(-1)).exp())
        return torch.stack(codes, dim=1), torch.stack(probabilities, dim=1)

    def to_encoder_grid(self, values_IMX: Tensor) -> Tensor:
        """Return (I, N, ...): each encoder position takes the value of the cell in which its centre lies."""
        if self.index_N is None:
            return values_IMX
        self.index_N = self.index_N.to(values_IMX.device)  # copied at the first step only
        return values_IMX[:, self.index_N]


def build_tokenizer(config: dict, encoder, load_weights: bool = True) -> VisualTokenizer:
    """Build a visual tokenizer. If it takes an ``encoder`` and the config has none, it gets the model's encoder."""
    fields = inspect.signature(VISUAL_TOKENIZERS.get(config["type"])).parameters
    if "encoder" in fields and config.get("encoder") is None:
        config = dict(config, encoder=encoder)
    return VISUAL_TOKENIZERS.build(config, default_args=dict(load_weights=load_weights))


def shares_encoder(tokenizer: VisualTokenizer, encoder) -> bool:
    """Whether the codes come from the features of the model's own encoder. Then it runs once for both."""
    return getattr(tokenizer, "encoder", None) is encoder


def _log_last_tap(key: str, tap: int) -> None:
    """Log what the number of the last layer means. In earlier versions it meant -1, and such checkpoints exist."""
    log_once(
        logging.INFO,
        "%s.tap=%d is the output of the last block, before the final norm; in earlier versions it was the state after "
        "the norm, which is tap=-1",
        *(key, tap),
    )


def _resample(key: str, tokenizer: VisualTokenizer, encoder, rule: str | None) -> Tensor | None:
    grids = grids_of(encoder)
    if grids == [tuple(tokenizer.grid)]:
        return None
    if rule != "nearest":
        raise ValueError(
            f"{key}: the tokenizer's grid is {'x'.join(map(str, tokenizer.grid))}, the encoder's "
            f"{' and '.join('x'.join(map(str, grid)) for grid in grids)}: choose sizes that agree, or set "
            "resample='nearest' (each encoder position takes the code of the cell in which its centre lies)"
        )
    return torch.cat([nearest_cells(tokenizer.grid, grid) for grid in grids])


def nearest_cells(grid: tuple[int, int], other_grid: tuple[int, int]) -> Tensor:
    """For each cell of ``other_grid``, in raster order, return the cell of ``grid`` in which its centre lies."""
    return torch.tensor(_nearest(grid, other_grid), device="cpu")


@cache
def _nearest(grid: tuple[int, int], other_grid: tuple[int, int]) -> list[int]:
    rows, columns = (
        [int((i + 0.5) * own / other) for i in range(other)] for own, other in zip(grid, other_grid, strict=True)
    )
    return [row * grid[1] + column for row in rows for column in columns]
