"""The contract of a visual head.

Legend: ``P`` visual positions, ``H`` LLM width, ``D`` code depth, ``C`` code width, ``W`` head width.
"""

import torch
from torch import Tensor, nn

from asvr.models.component import Component


class Head(Component):
    """Predicts the ``D`` codes of a visual token from one hidden state.

    ``forward(hidden_PH, vectors_PDC) -> states_PDW``: state ``d`` may look at the code vectors of depths
    before ``d`` (teacher forcing), never at its own. ``classifiers[d]`` turns it into logits. Losses get
    states and classifiers, not logits, so that they need not hold all logits at once.
    """

    classifiers: nn.ModuleList

    def forward(self, hidden_PH: Tensor, vectors_PDC: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must turn hidden_PH and vectors_PDC into states_PDW")

    @torch.no_grad()
    def sample(self, hidden_PH: Tensor, embed, *, temperature: float = 0.0, generator=None) -> Tensor:
        """Codes codes_PD, depth after depth, each given the ones before it.

        embed: the tokenizer's ``embed``, codes (P, D) -> (P, D, C). temperature: 0 takes the largest logit.
        """
        codes_PD = torch.zeros(hidden_PH.shape[0], len(self.classifiers), dtype=torch.long, device=hidden_PH.device)
        for d, classifier in enumerate(self.classifiers):
            logits = classifier(self(hidden_PH, embed(codes_PD))[:, d]).float()
            if temperature == 0:
                codes_PD[:, d] = logits.argmax(-1)
            else:
                probabilities = (logits / temperature).softmax(-1)
                codes_PD[:, d] = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        return codes_PD


def classifiers_of(width: int, codebook_sizes: list[int]) -> nn.ModuleList:
    return nn.ModuleList([nn.Linear(width, size) for size in codebook_sizes])
