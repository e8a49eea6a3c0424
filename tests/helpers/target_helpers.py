"""A target of a user's own, in as few lines as work."""

from torch import nn

from asvr.models.targets import Target


class Features(Target):
    """Predicts the encoder's features. A test overrides `reduced`, the loss of the predictions."""

    def __init__(self, *, encoder, llm, **own):
        super().__init__(encoder=encoder, llm=llm, **own)
        self.head = nn.Linear(llm.hidden_size, encoder.width)

    def truth(self, pixels, features_INE):
        return dict(features=features_INE.float())

    def loss(self, seen, truth):
        source_P, token_P = self.places(seen)
        features_PE = truth["features"].flatten(0, 1)
        features_PE = features_PE if token_P is None else features_PE[token_P]
        return self.reduced(self.head(seen.hidden[-1][source_P].float()), features_PE), {}

    def reduced(self, predicted_PE, features_PE):
        return (predicted_PE - features_PE).square().sum()
