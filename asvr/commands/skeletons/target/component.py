"""A reconstruction target of your own. Hidden states of an image are trained to predict it.

Legend: I images, N visual tokens of an image, E encoder width, H LLM width, P visual positions with a loss.
"""

import torch.nn.functional as F
from torch import nn

from asvr.models.targets import Target
from asvr.registry import TARGETS


@TARGETS.register_module()
class MyComponent(Target):
    """Reconstructs the encoder's features of each visual token, with the mean squared error as the loss.

    tap: the hidden state that predicts. -1: the one after the LLM's final norm. k: the output of its k-th block.
    """

    metrics = {"cosine": ()}  # other numbers that `loss` returns; logged as cosine_<name of the target>

    def __init__(self, *, encoder, llm, tap: int = -1, **own):
        super().__init__(encoder=encoder, llm=llm, taps=(tap,), **own)
        self.tap = tap
        self.head = nn.Linear(llm.hidden_size, encoder.width)  # it is trained, and checkpoints hold it

    def truth(self, pixels, features_INE):
        """Return the truth: tensors by name, with one entry for each image. They get no gradient."""
        return dict(features=features_INE.float())

    def loss(self, seen, truth):
        """Return the loss summed over the positions, and the sum of each metric."""
        predicted_PE, truth_PE, _ = self.compared(seen, truth)
        loss = F.mse_loss(predicted_PE, truth_PE, reduction="none").mean(-1).sum()
        cosine = F.cosine_similarity(predicted_PE.detach(), truth_PE, dim=-1).sum()
        return loss, dict(cosine=cosine)

    def inspect(self, seen, truth):
        """Return maps to look at: numbers (I, N) by name, and NaN where a token has none. The method is optional."""
        predicted_PE, truth_PE, token_P = self.compared(seen, truth)
        images = seen.batch.num_images
        found = predicted_PE.new_full((images * self.num_tokens,), float("nan"))
        found[slice(None) if token_P is None else token_P] = F.cosine_similarity(predicted_PE, truth_PE, dim=-1)
        return dict(cosine=found.view(images, self.num_tokens))

    def compared(self, seen, truth):
        """Return the predicted features, the true ones, and the visual token of each."""
        source_P, token_P = self.places(seen)  # rows of the hidden states, and the visual tokens that they predict
        truth_PE = truth["features"].flatten(0, 1)
        truth_PE = truth_PE if token_P is None else truth_PE[token_P]  # None: all tokens, in order
        return self.head(seen.hidden[self.tap][source_P].float()), truth_PE, token_P
