"""The visual embeddings that enter the LLM as a reconstruction target.

Legend: ``I`` images, ``N`` visual tokens of an image, ``E`` encoder width, ``H`` LLM width.
"""

import copy

from torch import Tensor, nn

from asvr.data.batch import Batch
from asvr.data.transforms import Pixels
from asvr.models.targets.ema import move_towards
from asvr.models.targets.features import ContinuousTarget
from asvr.registry import TARGETS


@TARGETS.register_module()
class EmbeddingTarget(ContinuousTarget):
    """The visual embeddings that the projector gives to the LLM (VDEP, arXiv 2502.09093; GAS, arXiv 2608.12209).

    VDEP takes the model's own projector as it is, GAS an exponential moving average of it. No gradient goes into that
    projector, so that the embeddings do not move towards what the LLM predicts.

    decay: of the average, in a step; None: there is none. The rest is as in `ContinuousTarget` and `Target`.
    model_projector is injected.

    They are taken where the projector gives them: some LLMs scale them, or add positions, in front of the first block.
    They move, so nothing is cached. Checkpoints hold an averaged projector.
    """

    def __init__(self, *, llm, model_projector: nn.Module, decay: float | None = None, key: str = "target", **own):
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"{key}.decay={decay!r}: expected a number from 0 to below 1, or None")
        self.width, self.decay = llm.hidden_size, decay
        super().__init__(llm=llm, key=key, **own)
        self.keeps_teacher = decay is not None
        if self.keeps_teacher:
            self.teacher = copy.deepcopy(model_projector).float().requires_grad_(False).eval()
        self._projector = (model_projector,)  # a tuple hides it: it is the model's

    def truth(self, pixels: dict[str, Pixels], features_INE: Tensor | None) -> dict[str, Tensor]:
        projector = self._projector[0] if self.teacher is None else self.teacher
        return dict(embeddings=projector(features_INE.float()))

    def features(self, truth: dict[str, Tensor], batch: Batch) -> Tensor:
        return truth["embeddings"].float()

    def start(self, model) -> None:
        if self.teacher is not None:
            self.teacher.load_state_dict(model.projector.state_dict())

    def after_step(self, model, skipped: Tensor | None) -> None:
        if self.teacher is not None:
            move_towards(self.teacher, model.projector, decay=self.decay, skipped=skipped)

    def describe(self) -> str:
        return f"embeddings of {'the projector' if self.teacher is None else 'its moving average'}"
