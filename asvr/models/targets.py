"""A reconstruction target: which codes, from which hidden states, by which head and loss.

Legend: ``I`` images, ``N`` visual tokens of an image on the encoder's grid, ``M`` on the tokenizer's,
``D`` code depth, ``P`` supervised visual positions, ``H`` LLM width.
"""

import inspect
import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asvr.base.told import tell_once
from asvr.models.heads.base import Head, places_of, why_whole_images
from asvr.models.tokenizers.base import VisualTokenizer
from asvr.registry import HEADS, LOSSES, VISUAL_TOKENIZERS


@dataclass
class Target:
    """One entry of the model's ``reconstruction`` list.

    weight: factor of its loss. shift: 1 = the hidden state before a visual token predicts it (the paper's
    equation 2), 0 = the one at its own position (the released code). tap: which hidden state: -1 after the LLM's final
    norm, 0 what its first block gets, ``k`` the output of its k-th block, the last one's in front of that norm.
    index_N: for each encoder position the tokenizer's position, None where the grids agree.
    shares_encoder: the tokenizer quantises the model's own encoder features. supervise: how many visual tokens of an
    image carry the loss in training, drawn at random; None: all. num_tokens: ``N``. places: what the head asks
    for, see `Head`. whole_images: why the head, which asks for none, needs all tokens of an image; None: it does not.
    """

    name: str
    tokenizer: VisualTokenizer
    head: Head
    criterion: nn.Module
    weight: float
    shift: int
    tap: int
    index_N: Tensor | None
    shares_encoder: bool
    supervise: int | None = None
    num_tokens: int = 1
    places: frozenset[str] = frozenset()
    whole_images: str | None = None

    def loss(self, hidden_PH: Tensor, codes_PD: Tensor, token_P: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The loss summed over positions, and the number of right codes at each depth (D,). token_P: see `states`."""
        return self.criterion(self.states(hidden_PH, codes_PD, token_P), self.head.classifiers, codes_PD)

    def states(self, hidden_PH: Tensor, codes_PD: Tensor, token_P: Tensor | None = None) -> Tensor:
        """token_P: the rows' flat indices into (I*N), None where they are all."""
        if token_P is not None and self.whole_images:
            raise ValueError(
                f"target {self.name!r}: {type(self.head).__name__} {self.whole_images}, and with shift=1 "
                "the first one has no hidden state where an image begins its sample: have its forward() take image_P "
                "and cell_P (which image and which cell a row is), or set shift=0"
            )
        with torch.no_grad():
            vectors_PDC = self.tokenizer.embed(codes_PD)
        return self.run_head(hidden_PH.float(), vectors_PDC, token_P)  # a frozen LLM may be half precision

    def run_head(self, hidden_PH: Tensor, vectors_PDC: Tensor, token_P: Tensor | None = None) -> Tensor:
        """The head, told which image and which cell a row is where it asks for it."""
        if not self.places:
            return self.head(hidden_PH, vectors_PDC)
        if token_P is None:
            token_P = torch.arange(hidden_PH.shape[0], device=hidden_PH.device)
        known = dict(image_P=token_P // self.num_tokens, cell_P=token_P % self.num_tokens)
        return self.head(hidden_PH, vectors_PDC, **{name: known[name] for name in self.places})

    @torch.no_grad()
    def predict(self, hidden_PH: Tensor, codes_PD: Tensor, token_P: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The most probable code at each depth given the true codes of the depths before, codes_PD; and its
        probability."""
        states_PDW = self.states(hidden_PH, codes_PD, token_P)
        codes, probabilities = [], []
        for d, classifier in enumerate(self.head.classifiers):
            logits_PV = classifier(states_PDW[:, d]).float()
            largest = logits_PV.max(-1)
            codes.append(largest.indices)
            probabilities.append((largest.values - logits_PV.logsumexp(-1)).exp())
        return torch.stack(codes, dim=1), torch.stack(probabilities, dim=1)

    def to_encoder_grid(self, codes_IMD: Tensor) -> Tensor:
        """codes_IND: each encoder position takes the code of the cell its centre lies in."""
        if self.index_N is None:
            return codes_IMD
        self.index_N = self.index_N.to(codes_IMD.device)  # copied at the first step only
        return codes_IMD[:, self.index_N]


def build_tokenizer(config: dict, encoder, load_weights: bool = True) -> VisualTokenizer:
    """A tokenizer that takes an ``encoder`` and is given none quantises the model's own."""
    fields = inspect.signature(VISUAL_TOKENIZERS.get(config["type"])).parameters
    if "encoder" in fields and config.get("encoder") is None:
        config = dict(config, encoder=encoder)
    return VISUAL_TOKENIZERS.build(config, default_args=dict(load_weights=load_weights))


def shares_encoder(tokenizer: VisualTokenizer, encoder) -> bool:
    """Whether codes come from the features of the model's own encoder, which then runs once for both."""
    return getattr(tokenizer, "encoder", None) is encoder


def build_target(entry: dict, *, key: str, encoder, llm, load_weights: bool) -> Target:
    """Build one entry of ``reconstruction``; ``key`` is its place in the config, for messages.

    Raises ``ValueError`` where the tokenizer's grid is not the encoder's and ``resample`` is not set, where
    ``shift`` is missing (it decides the objective, so it has no default), or ``tap`` is no layer of the LLM.
    """
    entry = dict(entry)
    shift = entry.get("shift")
    if shift not in (0, 1):
        raise ValueError(f"{key}.shift={shift!r}: expected 1 (the paper's equation 2) or 0 (the released code)")
    tap = entry.get("tap", -1)
    if not -1 <= tap <= llm.num_layers:
        raise ValueError(f"{key}.tap={tap}: expected -1 (after the final norm) or a layer in 0..{llm.num_layers}")
    if tap == llm.num_layers:
        _tell_last_tap(key, tap, llm)
    supervise = entry.get("supervise")
    if supervise is not None and not 1 <= supervise <= encoder.num_tokens:
        raise ValueError(
            f"{key}.supervise={supervise}: expected None (all) or 1 to {encoder.num_tokens} tokens an image"
        )
    tokenizer = build_tokenizer(entry["tokenizer"], encoder, load_weights)
    criterion = LOSSES.build(entry.get("loss", dict(type="CodeCrossEntropy")))
    weights = getattr(criterion, "depth_weights", None)
    if weights is not None and len(weights) != tokenizer.depth:
        raise ValueError(f"{key}.loss.depth_weights has {len(weights)} entries, the codes have depth {tokenizer.depth}")
    sizes = dict(hidden_size=llm.hidden_size, code_width=tokenizer.code_width)
    head = HEADS.build(entry["head"], default_args=dict(sizes, codebook_sizes=tokenizer.codebook_sizes))
    incomplete = shift == 1 or supervise is not None  # a head may get some tokens of an image alone
    places = places_of(head)
    whole_images = why_whole_images(head, **sizes) if incomplete and not places else None
    if whole_images and supervise is not None:
        raise ValueError(
            f"{key}.supervise={supervise}: {type(head).__name__} {whole_images}, and would get some "
            "alone: have its forward() take image_P and cell_P (which image and which cell a row is), or set it None"
        )
    return Target(
        name=entry["name"],
        tokenizer=tokenizer,
        head=head,
        criterion=criterion,
        weight=entry.get("weight", 1.0),
        shift=shift,
        tap=tap,
        index_N=_resample(key, tokenizer, encoder.grid, entry.get("resample")),
        shares_encoder=shares_encoder(tokenizer, encoder),
        supervise=supervise,
        num_tokens=encoder.num_tokens,
        places=places,
        whole_images=whole_images,
    )


def _tell_last_tap(key: str, tap: int, llm) -> None:
    """It used to be -1 by another name, and there are checkpoints that were trained so."""
    if getattr(llm, "final_norm", tap) is None:
        raise ValueError(f"{key}.tap={tap}: no final norm is found in this LLM, which has no other last state; use -1")
    tell_once(
        logging.INFO,
        "%s.tap=%d: the last block's own output, in front of the final norm; earlier runs with it took the state "
        "behind the norm, which is tap=-1",
        *(key, tap),
    )


def _resample(key: str, tokenizer: VisualTokenizer, grid: tuple[int, int], rule: str | None) -> Tensor | None:
    if tuple(tokenizer.grid) == tuple(grid):
        return None
    if rule != "nearest":
        raise ValueError(
            f"{key}: the tokenizer's grid is {'x'.join(map(str, tokenizer.grid))}, the encoder's "
            f"{'x'.join(map(str, grid))}: choose sizes that agree, or set resample='nearest' (each encoder position "
            "takes the code of the cell "
            "its centre lies in)"
        )
    return nearest_cells(tokenizer.grid, grid)


def nearest_cells(grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """For each cell of the grid ``wanted``, in raster order, the cell of ``grid`` that its centre lies in."""
    rows, columns = (
        torch.tensor([int((i + 0.5) * own / other) for i in range(other)], device="cpu")
        for own, other in zip(grid, wanted, strict=True)
    )
    return (rows[:, None] * grid[1] + columns).flatten()
