"""A target without codes: a layer of the LLM predicts the encoder's features, with a cosine loss.

It has no teacher of its own. It reads the features of the encoder, cached or not. So there is nothing more to cache.
"""

import torch.nn.functional as F
from torch import nn

from asvr.models.targets import Target
from asvr.registry import TARGETS


@TARGETS.register_module()
class CosineFeatures(Target):
    """Predicts the encoder's features. tap: the layer whose hidden states are read. The other fields are `Target`'s."""

    metrics = {"cosine": ()}  # logged as cosine_<name>, the mean over all positions

    def __init__(self, *, encoder, llm, tap: int, **own):
        super().__init__(encoder=encoder, llm=llm, taps=(tap,), **own)
        self.tap = tap
        self.head = nn.Sequential(nn.LayerNorm(llm.hidden_size), nn.Linear(llm.hidden_size, encoder.width))

    def truth(self, pixels, features_INE):
        return dict(features=features_INE.float())

    def cosines(self, seen, truth):
        source_P, token_P = self.places(seen)
        features_PE = truth["features"].flatten(0, 1)
        features_PE = features_PE if token_P is None else features_PE[token_P]
        return F.cosine_similarity(self.head(seen.hidden[self.tap][source_P].float()), features_PE, dim=-1), token_P

    def loss(self, seen, truth):
        cosines_P, _ = self.cosines(seen, truth)
        return (1 - cosines_P).sum(), dict(cosine=cosines_P.detach().sum())

    def inspect(self, seen, truth):
        cosines_P, token_P = self.cosines(seen, truth)
        found = cosines_P.new_full((seen.batch.num_images * self.num_tokens,), float("nan"))
        found[slice(None) if token_P is None else token_P] = cosines_P
        return dict(cosine=found.view(seen.batch.num_images, self.num_tokens))
