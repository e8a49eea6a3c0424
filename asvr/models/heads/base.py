"""The contract of a visual head.

Legend: ``P`` visual positions, ``H`` LLM width, ``D`` code depth, ``C`` code width, ``W`` head width.
"""

import inspect

import torch
from torch import Tensor, nn

from asvr.models.component import Component

PLACES = frozenset({"image_P", "cell_P"})  # optional arguments of a head's `forward`


class Head(Component):
    """A head predicts the ``D`` codes of a visual token from one hidden state.

    ``forward(hidden_PH, vectors_PDC) -> states_PDW``: state ``d`` may depend on the code vectors of the depths before
    ``d`` (teacher forcing), but not on its own. ``classifiers[d]`` turns state ``d`` into logits. Losses get states and
    classifiers instead of logits, so that they do not have to hold all logits at once.

    The rows are visual tokens of several images, and some tokens may be left out: ``supervise`` draws some, and with
    ``shift=1`` the first token of an image at the start of a sample has no hidden state. So a head must treat each row
    by itself. A head that needs the other tokens of an image adds arguments to ``forward`` with these names:
    ``image_P`` (the number of the image in the batch), ``cell_P`` (the position in the encoder's grid, in raster
    order), or both. It gets them with every call. A head that mixes rows without them is refused if rows are left out.
    """

    classifiers: nn.ModuleList

    def forward(self, hidden_PH: Tensor, vectors_PDC: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} needs a forward() from hidden_PH, vectors_PDC to states_PDW")

    @torch.no_grad()
    def sample(self, hidden_PH: Tensor, embed, *, temperature: float = 0.0, generator=None, **places: Tensor) -> Tensor:
        """Return predicted codes_PD, depth by depth. Each depth gets the codes predicted before it.

        embed: the tokenizer's ``embed``, codes (P, D) -> (P, D, C). temperature: 0 takes the code with the largest
        logit. places: the optional arguments that ``forward`` takes.
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
    """Return which of `PLACES` a head's ``forward`` takes."""
    return PLACES & inspect.signature(head.forward).parameters.keys()


@torch.no_grad()
def why_whole_images(head: nn.Module, *, hidden_size: int, code_width: int) -> str | None:
    """Return why a head needs all tokens of an image at once. None: it does not, or the weights are on the meta device.

    The head is called with three rows. It needs all tokens if this fails, or if another second row changes the results
    of the other two. The other second row is NaN, because a weight of zero does not hide NaN. If the head refuses NaN,
    it gets other numbers.
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
            except Exception:  # the head checks its input, which must be finite
                other = with_second(lambda row: -row)
    except Exception as error:  # a head that takes only whole images may raise anything
        return f"fails with three tokens ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    finally:
        head.train(training)
    return None if torch.allclose(own, other, rtol=1e-4, atol=1e-5) else "looks at other tokens of an image"
