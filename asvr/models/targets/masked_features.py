"""A target that masks images: it predicts a frozen teacher's features of blocks that the LLM does not see.

Legend: ``I`` images, ``N`` visual tokens of an image, ``V`` visual tokens in the rows, ``K`` blocks of an image, ``P``
tokens of all blocks, ``E`` width of the features.
"""

from dataclasses import fields

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from asvr.data.batch import Batch
from asvr.data.layouts import ImageLayout
from asvr.data.transforms import ImageTransform, Pixels
from asvr.models.heads.features import build_mlp
from asvr.models.masking import Masked, MaskedHead, drawer, masked
from asvr.models.targets.base import Target, TensorSpec
from asvr.models.targets.blocks import Blocks, block_bits
from asvr.models.targets.feature_truth import FeatureTruth
from asvr.models.targets.seen import Seen
from asvr.registry import LOSSES, TARGETS


@TARGETS.register_module()
class MaskedFeatureTarget(Target):
    """A teacher's features of masked blocks, which an early layer of the LLM predicts (JARVIS, arXiv 2512.15885).

    The tokens of the blocks are masked, and are predicted from the rest of the image, the context. Text is read in the
    same LLM pass: of a masked image it sees the context and the masked tokens.

    teacher: config of an encoder, which is built and frozen. None: the features of the model's own encoder.
    resample: how the teacher's features are resampled to the encoder's grid, see `FeatureTruth`.
    tap: the layer whose output predicts the features. None: at a fourth of the layers.
    mlp: fields of `FeatureMLP`, for the head. loss: a `FeatureLoss`. None: `CosineLoss`.
    masks: fields of `Blocks`. share: the share of the images that are masked in training.

    It follows ``MLLMJEPA`` and ``MaskCollator`` of the released code, with four differences. Each image is masked or
    not by its own draw, not together with its micro-batch. A block may include the last row and column. Contexts are
    not cut to the shortest one of a micro-batch. If the context would be too small, there is one block fewer; a context
    never overlaps a block.
    """

    shares_mask = True
    rules = True
    metrics = {"cosine": ()}  # noqa: RUF012  it is only read

    def __init__(
        self,
        *,
        encoder,
        llm,
        teacher: dict | None = None,
        resample: str | None = None,
        tap: int | None = None,
        mlp: dict | None = None,
        loss: dict | None = None,
        masks: dict | None = None,
        share: float = 1.0,
        load_weights: bool = True,
        **own,
    ):
        tap = max(1, llm.num_layers // 4) if tap is None else tap
        super().__init__(encoder=encoder, llm=llm, taps=(tap,), load_weights=load_weights, **own)
        key = self.key
        if self.shift or self.positions.supervise is not None:
            raise ValueError(f"{key}: MaskedFeatureTarget chooses the tokens itself: leave out shift and supervise")
        if not 0 < share <= 1:
            raise ValueError(f"{key}.share={share!r}: expected a number above 0 and up to 1")
        if unknown := sorted(set(masks or {}) - {field.name for field in fields(Blocks)}):
            expected = ", ".join(field.name for field in fields(Blocks))
            raise ValueError(f"{key}.masks.{unknown[0]}: unknown; expected some of {expected}")
        self.blocks, self.share, self.tap = Blocks(**(masks or {})), share, tap
        self.blocks.check(f"{key}.masks", self.grid)
        self.features = FeatureTruth(teacher, encoder=encoder, resample=resample, key=key, load_weights=load_weights)
        self.teacher = self.features.teacher
        own_mlp = build_mlp(mlp or {}, hidden_size=llm.hidden_size, out_width=self.features.width, key=f"{key}.mlp")
        self.head = MaskedHead(own_mlp, llm.hidden_size)
        self.criterion = LOSSES.build(loss or dict(type="CosineLoss"))
        if getattr(self.criterion, "of_images", False):
            raise ValueError(
                f"{key}.loss: {type(self.criterion).__name__} compares all tokens of an image, but there are only "
                "those of blocks: use CosineLoss"
            )

    def views(self) -> dict[str, ImageTransform]:
        return self.features.views(self.name)

    def truth_spec(self) -> dict[str, TensorSpec] | None:
        spec = self.features.spec()
        return None if spec is None else dict(features=spec)

    def truth(self, pixels: dict[str, Pixels], features_INE: Tensor | None) -> dict[str, Tensor]:
        return dict(features=self.features.features(pixels.get(self.name), features_INE))

    def mask(self, batch: Batch, *, training: bool) -> Masked | None:
        if not self.learns_from(batch):
            return None
        generator = drawer(training=training)
        block_IKN, context_IN = self.blocks.draw(batch.num_images, self.grid, generator)
        whole_I = generator.random(batch.num_images) >= (self.share if training else 1.0)
        block_IKN[whole_I], context_IN[whole_I] = False, True
        image_P, _, cell_P = block_IKN.nonzero()
        drawn = self.blocks.blocks * block_IKN.sum(2).max()  # tokens of an image's blocks, which all have the same size
        return masked(
            batch,
            self.head.token,
            np.flatnonzero(block_IKN.any(1)),
            image_P * self.num_tokens + cell_P,
            weight=1.0 / max(drawn, 1),
            shared=not self.reads_alone(training=training),
            bits_V=block_bits(block_IKN, context_IN),
        )

    def reads_alone(self, *, training: bool) -> bool:
        """Text reads images without masks in evaluation, and if this target's weight is 0."""
        return not training or self.weight == 0

    def learns_from(self, batch: Batch) -> bool:
        return self.counts and batch.num_images > 0

    def count(self, window: list[Batch], *, training: bool) -> float:
        """Count the images that are expected to be masked.

        The loss of an image is the mean over its blocks. A block that was not drawn, because it left too little
        context, counts as 0."""
        return sum(batch.num_images for batch in window) * (self.share if training else 1.0)

    def predictions(self, seen: Seen) -> Tensor:
        states_VH = seen.hidden[self.tap][seen.batch.visual_position_V]
        return self.head.mlp(states_VH[seen.masked.place_P].float())

    def loss(self, seen: Seen, truth: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and ``cosine``: the cosine similarity of predicted and target features, for any loss."""
        predicted_PE = self.predictions(seen)
        target_VE = self.features.by_cell(truth["features"], seen.batch).flatten(0, 1)
        target_PE = target_VE[seen.masked.place_P]
        cosine = F.cosine_similarity(predicted_PE.detach(), target_PE, dim=-1).sum() * seen.masked.weight
        return self.criterion(predicted_PE, target_PE) * seen.masked.weight, dict(cosine=cosine)

    def inspect(self, seen: Seen, truth: dict[str, Tensor]) -> dict[str, Tensor]:
        target_VE = self.features.by_cell(truth["features"], seen.batch).flatten(0, 1)
        predicted_VE = self.head.mlp(seen.hidden[self.tap][seen.batch.visual_position_V].float())
        return dict(cosine=seen.masked.map_of(F.cosine_similarity(predicted_VE, target_VE, dim=-1), seen.batch))

    def describe(self) -> str:
        return f"{self.blocks.blocks} masked blocks, {self.features.width} features a token"

    def check_layout(self, layout: ImageLayout) -> None:
        if layout.fixed is None or layout.fixed.num_crops != 1:
            raise ValueError(
                f"{self.key}: MaskedFeatureTarget masks whole images of one size; {type(layout).__name__} gives others"
            )
