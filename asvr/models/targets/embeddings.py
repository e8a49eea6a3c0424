"""A reconstruction target: the visual embeddings that the LLM gets as input.

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

    VDEP uses the model's own projector. GAS uses a moving average of it. No gradient flows into the target's projector,
    so that the embeddings do not move towards the LLM's predictions.

    decay: decay of the moving average in each step. None: the model's own projector is used.

    The other arguments are those of `ContinuousTarget` and `Target`. The library gives model_projector. The target is
    the output of the projector. Some LLMs scale it or add positions before their first block: this is not part of the
    target. The embeddings change in training, so they are not cached. Checkpoints hold a moving average.
    """

    def __init__(self, *, llm, model_projector: nn.Module, decay: float | None = None, key: str = "target", **own):
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"{key}.decay={decay!r}: expected a number from 0 to below 1, or None")
        self.width, self.decay = llm.hidden_size, decay
        super().__init__(llm=llm, key=key, **own)
        self.keeps_teacher = decay is not None
        if self.keeps_teacher:
            self.teacher = copy.deepcopy(model_projector).float().requires_grad_(False).eval()
        self._projector = (model_projector,)  # in a tuple, so that it is not registered here: it belongs to the model

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
