"""A target with codes of pooled features. Four neighbours in raster order share one code. The last of them predicts
it."""

import torch

from asvr.models.targets import CodeTarget, TensorSpec
from asvr.registry import TARGETS

GROUP = 4


@TARGETS.register_module()
class PooledCodes(CodeTarget):
    """A `CodeTarget` for pooled features. Its tokenizer must quantise the features of the model's own encoder."""

    def __init__(self, **own):
        super().__init__(**dict(dict(supervise=dict(every=GROUP, first=GROUP - 1)), **own))
        if not self.shares_encoder or self.num_tokens % GROUP:
            raise ValueError(f"{self.key}: expected a tokenizer of the encoder's own features, a multiple of 4 of them")

    def truth_spec(self):
        return dict(codes=TensorSpec((self.num_tokens // GROUP, self.tokenizer.depth), torch.int32))

    def truth(self, pixels, features_INE):
        pooled = features_INE.unflatten(1, (-1, GROUP)).mean(2)
        return dict(codes=self.tokenizer.quantize(pooled))

    def codes(self, truth):
        return truth["codes"].long().repeat_interleave(GROUP, dim=1)
