"""The contract of a visual head.

Legend: ``P`` visual positions, ``H`` LLM width, ``D`` code depth, ``C`` code width, ``W`` head width.
"""

import inspect

import torch
from torch import Tensor, nn

from asvr.models.component import Component

PLACES = frozenset({"image_P", "cell_P"})  # what a head's `forward` may ask for besides


class Head(Component):
    """Predicts the ``D`` codes of a visual token from one hidden state.

    ``forward(hidden_PH, vectors_PDC) -> states_PDW``: state ``d`` may look at the code vectors of depths
    before ``d`` (teacher forcing), never at its own. ``classifiers[d]`` turns it into logits. Losses get
    states and classifiers, not logits, so that they need not hold all logits at once.

    Rows are visual tokens of several images, not always all of them: ``supervise`` draws some, and with ``shift=1``
    the first token of an image that begins a sample has no hidden state. So each row is looked at alone. A head that
    looks at the other tokens of an image takes ``image_P`` (the image's number in the batch) and ``cell_P`` (the place
    in the encoder's grid, in raster order) too, as arguments of ``forward`` of these names, in whole or in part; it
    gets them with every call. One that mixes rows without them is refused where rows are left out.
    """

    classifiers: nn.ModuleList

    def forward(self, hidden_PH: Tensor, vectors_PDC: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must turn hidden_PH and vectors_PDC into states_PDW")

    @torch.no_grad()
    def sample(self, hidden_PH: Tensor, embed, *, temperature: float = 0.0, generator=None, **places: Tensor) -> Tensor:
        """Codes codes_PD, depth after depth, each given the ones before it.

        embed: the tokenizer's ``embed``, codes (P, D) -> (P, D, C). temperature: 0 takes the largest logit. places:
        those that ``forward`` takes.
        """
        codes_PD = torch.zeros(hidden_PH.shape[0], len(self.classifiers), dtype=torch.long, device=hidden_PH.device)
        for d, classifier in enumerate(self.classifiers):
            logits = classifier(self(hidden_PH, embed(codes_PD), **places)[:, d]).float()
            if temperature == 0:
                codes_PD[:, d] = logits.argmax(-1)
            else:
                probabilities = (logits / temperature).softmax(-1)
                codes_PD[:, d] = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        return codes_PD


def classifiers_of(width: int, codebook_sizes: list[int], *, bias: bool = True) -> nn.ModuleList:
    return nn.ModuleList([nn.Linear(width, size, bias=bias) for size in codebook_sizes])


def places_of(head: nn.Module) -> frozenset[str]:
    """Which of `PLACES` a head's ``forward`` takes."""
    return PLACES & inspect.signature(head.forward).parameters.keys()


@torch.no_grad()
def why_whole_images(head: nn.Module, *, hidden_size: int, code_width: int) -> str | None:
    """Why a head needs all tokens of an image at once, tried with three rows: another second row changes what it makes
    of the others, or it fails. None where each row is looked at alone, and on the meta device, which cannot tell.

    The second row is NaN, which a weight of zero does not hide; for a head that refuses NaN, other numbers.
    """
    weight, training = next(head.parameters()), head.training
    if weight.is_meta:
        return None
    numbers = torch.Generator("cpu").manual_seed(0)
    shapes = (3, hidden_size), (3, len(head.classifiers), code_width)
    rows = [torch.randn(shape, generator=numbers, device="cpu") for shape in shapes]

    def with_second(change) -> Tensor:
        given = [row.clone() for row in rows]
        for row in given:
            row[1] = change(row[1])
        states_PDW = head(*(row.to(weight) for row in given))
        if states_PDW.shape[0] != 3:
            raise ValueError(f"it made {states_PDW.shape[0]} rows of 3")
        return states_PDW[::2].float()

    head.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            own = with_second(lambda row: row)
            try:
                other = with_second(lambda row: row * torch.nan)
            except Exception:  # it looks at its input, which must be finite then
                other = with_second(lambda row: -row)
    except Exception as error:  # whatever a head that takes whole images alone raises
        return f"fails with three tokens ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    finally:
        head.train(training)
    return None if torch.allclose(own, other, rtol=1e-4, atol=1e-5) else "looks at other tokens of an image"
