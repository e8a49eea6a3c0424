"""A target with a teacher that follows the training.

The encoder is trained. Its exponential moving average is the teacher, and the LLM predicts the teacher's features.
Checkpoints hold the teacher, because no other file has it.
"""

import copy

import torch.nn.functional as F
from torch import nn

from asvr.models.targets import Target, move_towards
from asvr.registry import TARGETS


@TARGETS.register_module()
class EmaFeatures(Target):
    """Predicts the features of the averaged encoder. decay: the decay of the average in one step."""

    keeps_teacher = True

    def __init__(self, *, encoder, llm, decay: float = 0.99, **own):
        super().__init__(encoder=encoder, llm=llm, **own)
        self.decay = decay
        self.head = nn.Linear(llm.hidden_size, encoder.width)
        self.teacher = copy.deepcopy(encoder).float()
        self.view = encoder.transform

    def views(self):
        return {self.name: self.view}

    def truth(self, pixels, features_INE):
        return dict(features=self.teacher(pixels[self.name]))

    def loss(self, seen, truth):
        source_P, token_P = self.places(seen)
        features_PE = F.layer_norm(truth["features"], truth["features"].shape[-1:]).flatten(0, 1)
        features_PE = features_PE if token_P is None else features_PE[token_P]
        predicted_PE = self.head(seen.hidden[-1][source_P].float())
        return F.smooth_l1_loss(predicted_PE, features_PE, reduction="none").mean(-1).sum(), {}

    def start(self, model):
        self.teacher.load_state_dict(model.encoder.state_dict())

    def after_step(self, model, skipped):
        move_towards(self.teacher, model.encoder, decay=self.decay, skipped=skipped)
