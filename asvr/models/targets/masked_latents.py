"""A target that masks images: it predicts what a moving average of the model computes for the whole image.

Legend: ``I`` images, ``N`` visual tokens of an image, ``V`` visual tokens in all rows, ``P`` masked visual tokens,
``H`` LLM width, ``W`` outputs of the head.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asvr.base.distributed import sum_over_processes
from asvr.data.batch import Batch
from asvr.models.heads.features import build_mlp
from asvr.models.losses.features import SimilarityLoss
from asvr.models.masking import Masked, MaskedHead, drawer, images_of, masked
from asvr.models.targets.base import Target
from asvr.models.targets.ema import move_towards
from asvr.models.targets.seen import Seen
from asvr.registry import TARGETS


class CentredCrossEntropy(nn.Module):
    """The cross-entropy of DINO (arXiv 2104.14294) with soft labels.

    The labels are the softmax of the teacher's outputs, minus their moving mean, divided by a small temperature.

    student_temperature, teacher_temperature: the outputs are divided by them. momentum: momentum of the moving mean in
    each step.
    """

    def __init__(self, *, outputs: int, student_temperature: float, teacher_temperature: float, momentum: float):
        super().__init__()
        self.student, self.teacher, self.momentum = student_temperature, teacher_temperature, momentum
        self.register_buffer("centre", torch.zeros(outputs))
        self.register_buffer("sum", torch.zeros(outputs), persistent=False)  # over the micro-batches of a step
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, predicted_PW: Tensor, teacher_PW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy in nats, summed over ``P``, and its lower bound: the entropy of the labels."""
        labels_PW = ((teacher_PW.float() - self.centre) / self.teacher).softmax(-1)
        loss = -(labels_PW * (predicted_PW.float() / self.student).log_softmax(-1)).sum()
        return loss, torch.special.entr(labels_PW).sum()

    @torch.no_grad()
    def note(self, teacher_VW: Tensor) -> None:
        """Add the teacher's outputs at all visual tokens of a micro-batch to the sums of this step."""
        self.sum += teacher_VW.float().sum(0)
        self.count += len(teacher_VW)

    @torch.no_grad()
    def move(self, skipped: Tensor | None) -> None:
        """Move the mean towards the mean of the step's outputs in all processes. Every process must call it."""
        total = sum_over_processes(dict(sum=self.sum, count=self.count))
        mean_W, stays = total["sum"] / total["count"].clamp(min=1), total["count"] == 0
        stays = stays if skipped is None else stays | skipped
        self.centre.copy_(torch.where(stays, self.centre, self.centre.lerp(mean_W, 1 - self.momentum)))
        self.sum.zero_()
        self.count.zero_()


@TARGETS.register_module()
class MaskedLatentTarget(Target):
    """The states of a moving-average LLM for the whole image, predicted from masked tokens (LaVer, arXiv 2512.06281).

    In an additional LLM pass, some of an image's tokens are masked. The model predicts the teacher's outputs there. The
    teacher is the moving average of the LLM and of the head, and sees the whole image. It is a float32 copy of the LLM.

    mask_ratio: the share of the tokens that is masked, rounded down.
    mlp: fields of `FeatureMLP`, for the head. outputs: ``W``, by default the LLM's width.
    decay: decay of the moving average in each step.
    student_temperature, teacher_temperature, centre_momentum: see `CentredCrossEntropy`.
    gram_weight: weight of the Gram term, the `SimilarityLoss` of the head's and the teacher's outputs.

    It matches ``LaverLoss`` of the released code with two exceptions: the Gram term compares the tokens of one image,
    not those of all images of a process, and the mean moves once in each step.
    """

    keeps_teacher = True
    copies_llm = True
    own_pass = True
    metrics = {"gram": (), "kl": ()}  # noqa: RUF012  it is only read

    def __init__(
        self,
        *,
        encoder,
        llm,
        mask_ratio: float = 0.4,
        mlp: dict | None = None,
        outputs: int | None = None,
        decay: float = 0.996,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        centre_momentum: float = 0.9,
        gram_weight: float = 1.0,
        **own,
    ):
        super().__init__(encoder=encoder, llm=llm, **own)
        key = self.key
        if self.shift or self.positions.supervise is not None:
            raise ValueError(f"{key}: MaskedLatentTarget chooses the tokens itself: leave out shift and supervise")
        for name, value in dict(decay=decay, centre_momentum=centre_momentum, mask_ratio=mask_ratio).items():
            if not 0 < value < 1:
                raise ValueError(f"{key}.{name}={value!r}: expected a number between 0 and 1")
        for name, value in dict(student=student_temperature, teacher=teacher_temperature).items():
            if value <= 0:
                raise ValueError(f"{key}.{name}_temperature={value!r}: expected a number above 0")
        if int(mask_ratio * self.num_tokens) == 0:
            raise ValueError(
                f"{key}.mask_ratio={mask_ratio}: masks none of an image's {self.num_tokens} tokens; set a larger one"
            )
        self.mask_ratio, self.decay, self.gram_weight = mask_ratio, decay, gram_weight
        outputs = outputs or llm.hidden_size
        fields = dict(dict(layers=3, width=2048), **(mlp or {}))
        own_mlp = build_mlp(fields, hidden_size=llm.hidden_size, out_width=outputs, key=f"{key}.mlp")
        self.head = MaskedHead(own_mlp, llm.hidden_size)
        teacher = dict(llm=copy.deepcopy(llm), mlp=copy.deepcopy(own_mlp))
        self.teacher = nn.ModuleDict(teacher).float().requires_grad_(False).eval()
        self.criterion = CentredCrossEntropy(
            outputs=outputs,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            momentum=centre_momentum,
        )
        self.similarity = SimilarityLoss()

    # Masks and predictions ---------------------------------------------------------------------------------

    def truth(self, pixels, features_INE) -> dict[str, Tensor]:
        return {}  # the teacher needs the LLM's input: see `teach`

    def mask(self, batch: Batch, *, training: bool) -> Masked | None:
        if not self.learns_from(batch):
            return None
        generator = drawer(training=training)
        drawn = [generator.permutation(own_V)[: self._masked_of(len(own_V))] for own_V, _ in images_of(batch)]
        places_V = np.sort(np.concatenate(drawn))
        return masked(batch, self.head.token, places_V, places_V, weight=1.0, shared=False)

    def _masked_of(self, tokens: int) -> int:
        return int(self.mask_ratio * tokens)

    def learns_from(self, batch: Batch) -> bool:
        return self.counts and self.count([batch], training=True) > 0

    def count(self, window: list[Batch], *, training: bool) -> float:
        """Count the masked tokens."""
        return sum(self._masked_of(len(own_V)) for batch in window for own_V, _ in images_of(batch))

    @torch.no_grad()
    def teach(self, seen: Seen) -> dict[str, Tensor]:
        """Return the teacher's outputs at all visual tokens, (V, W)."""
        batch = seen.batch
        mask_BT = batch.attention_mask_BT if batch.left_padded else None
        ruled = {} if seen.rule is None else dict(rule=seen.rule)
        states = self.teacher["llm"].hidden(seen.embeds_BTH, {-1}, mask_BT, batch.segments, **ruled)
        hidden_VH = states[-1].flatten(0, 1)[batch.visual_position_V]
        return dict(outputs=self.teacher["mlp"](hidden_VH.float()))

    def loss(self, seen: Seen, truth: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy in nats plus the weighted Gram term, and the metrics.

        ``gram`` is the Gram term. ``kl`` is the cross-entropy minus the entropy of the labels: this entropy changes
        while the teacher and the mean move."""
        predicted_VW = self.head.mlp(seen.hidden[-1][seen.batch.visual_position_V].float())
        places_P = seen.masked.place_P
        loss, entropy = self.criterion(predicted_VW[places_P], truth["outputs"][places_P])
        gram = self._gram(seen, predicted_VW, truth["outputs"]) * (len(places_P) / len(predicted_VW))
        if seen.training:
            self.criterion.note(truth["outputs"])
        return loss + self.gram_weight * gram, dict(gram=gram.detach(), kl=(loss - entropy).detach())

    def _gram(self, seen: Seen, predicted_VW: Tensor, teacher_VW: Tensor) -> Tensor:
        """Return the Gram term, summed over tokens."""
        return self.similarity(seen.by_image(predicted_VW), seen.by_image(teacher_VW.float()), seen.there_IN)

    def inspect(self, seen: Seen, truth: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return ``cosine``: the cosine similarity of the head's and the teacher's outputs, at the masked tokens."""
        predicted_VW = self.head.mlp(seen.hidden[-1][seen.batch.visual_position_V].float())
        cosine_V = F.cosine_similarity(predicted_VW, truth["outputs"].float(), dim=-1)
        return dict(cosine=seen.masked.map_of(cosine_V, seen.batch))

    # The teacher ---------------------------------------------------------------------------------------------

    def start(self, model) -> None:
        self.teacher["llm"].load_state_dict(model.llm.state_dict())
        self.teacher["mlp"].load_state_dict(self.head.mlp.state_dict())

    def after_step(self, model, skipped: Tensor | None) -> None:
        move_towards(self.teacher["llm"], model.llm, decay=self.decay, skipped=skipped)
        move_towards(self.teacher["mlp"], self.head.mlp, decay=self.decay, skipped=skipped)
        self.criterion.move(skipped)

    def describe(self) -> str:
        return f"{int(self.mask_ratio * self.num_tokens)} masked tokens, predicted with the LLM's EMA as the teacher"
