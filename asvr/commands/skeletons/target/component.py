"""A reconstruction target of your own: what hidden states at an image are trained to predict.

Legend: I images, N visual tokens of an image, E encoder width, H LLM width, P visual positions with a loss.
"""

import torch.nn.functional as F
from torch import nn

from asvr.models.targets import Target
from asvr.registry import TARGETS


@TARGETS.register_module()
class MyComponent(Target):
    """Reconstructs the encoder's features of each visual token, by the mean squared difference.

    tap: which hidden state is read: -1 after the LLM's final norm, k the output of its k-th block.
    """

    metrics = {"cosine": ()}  # what `loss` gives besides; logged as cosine_<name of the target>

    def __init__(self, *, encoder, llm, tap: int = -1, **own):
        super().__init__(encoder=encoder, llm=llm, taps=(tap,), **own)
        self.tap = tap
        self.head = nn.Linear(llm.hidden_size, encoder.width)  # what is trained; checkpoints hold it

    def truth(self, pixels, features_INE):
        """What is predicted, by name: tensors with an entry for each image. No gradient goes through them."""
        return dict(features=features_INE.float())

    def loss(self, seen, truth):
        """The loss summed over the positions, and the sum of each metric."""
        source_P, token_P = self.places(seen)  # rows of the hidden states, and which visual tokens they predict
        wanted_PE = truth["features"].flatten(0, 1)
        wanted_PE = wanted_PE if token_P is None else wanted_PE[token_P]  # None: all of them, in order
        predicted_PE = self.head(seen.hidden[self.tap][source_P].float())
        loss = F.mse_loss(predicted_PE, wanted_PE, reduction="none").mean(-1).sum()
        cosine = F.cosine_similarity(predicted_PE.detach(), wanted_PE, dim=-1).sum()
        return loss, dict(cosine=cosine)
