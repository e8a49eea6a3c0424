"""Continuous features as a reconstruction target, predicted at one or several layers of the LLM.

Legend: ``I`` images, ``N`` visual tokens of an image on the encoder's grid, ``P`` visual positions that carry the loss,
``H`` LLM width, ``E`` width of the features, ``W`` width of the predictions: ``E``, or ``H`` without a head.
"""

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asvr.base.text import source_of_class
from asvr.data.batch import Batch
from asvr.data.transforms import ImageTransform, Pixels
from asvr.models.heads.features import build_mlp
from asvr.models.targets.base import Target, TensorSpec
from asvr.models.targets.feature_truth import FeatureTruth
from asvr.models.targets.seen import Seen
from asvr.registry import LOSSES, TARGETS


class ContinuousTarget(Target):
    """The base class of targets without codes: head, loss and maps.

    A subclass sets ``width`` (``E``) before it calls this constructor, and has a method `features`.

    tap: which hidden state, see `Target`. With a list, each of them predicts the features, and the loss is the mean.
    mlp: fields of a `FeatureMLP`. Each tap gets its own. None: the hidden states themselves are the predictions.
    shared_mlp: one MLP for all taps.
    loss: a `FeatureLoss`. None: `CosineLoss`. normalize: whether the target features go through a layer norm without
        weights first.

    The metric ``cosine`` is the mean cosine similarity of predicted and target features.

    If the weight is 0 in a stage, nothing is computed. Raises ``ValueError`` if the widths do not fit.
    """

    width: int

    def __init__(
        self,
        *,
        encoder,
        llm,
        tap: int | list = -1,
        mlp: dict | None = None,
        shared_mlp: bool = False,
        loss: dict | None = None,
        normalize: bool = False,
        key: str = "target",
        **own,
    ):
        taps = list(tap) if isinstance(tap, list | tuple) else [tap]
        if not taps or len(set(taps)) < len(taps) or not all(type(one) is int for one in taps):
            raise ValueError(f"{key}.tap={tap!r}: expected a layer, or a list of different layers")
        if shared_mlp and (mlp is None or len(taps) == 1):
            raise ValueError(f"{key}.shared_mlp=True: needs an `mlp`, and a list of several layers in `tap`")
        super().__init__(encoder=encoder, llm=llm, taps=taps, key=key, **own)
        self.normalize = normalize
        self.criterion = LOSSES.build(loss or dict(type="CosineLoss"))
        self.of_images = getattr(self.criterion, "of_images", False)
        _check_loss(self.criterion, self.of_images, f"{key}.loss")
        if mlp is None:
            if llm.hidden_size != self.width and not self.of_images:
                raise ValueError(
                    f"{key}.mlp=None: the hidden states have width {llm.hidden_size}, but the features have width "
                    f"{self.width}: set mlp=dict(layers=1)"
                )
        else:
            sizes = dict(hidden_size=llm.hidden_size, out_width=self.width, key=f"{key}.mlp")
            self.head = nn.ModuleList([build_mlp(mlp, **sizes) for _ in (taps[:1] if shared_mlp else taps)])
        self.metrics = dict(cosine=()) if mlp is not None or llm.hidden_size == self.width else {}

    # For a subclass ----------------------------------------------------------------------------------------

    def features(self, truth: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the target features (I, N, E) float32, from the result of `truth` or from the cache."""
        raise NotImplementedError(f"{type(self).__name__} needs a method features() for the features of each cell")

    # The contract of a target ------------------------------------------------------------------------------

    def learns_from(self, batch: Batch) -> bool:
        return self.counts and super().learns_from(batch)

    def loss(self, seen: Seen, truth: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        target_PE, source_P, token_P = self.target_features(seen, truth)
        losses, cosines = [], []
        for predicted_PW in self.predictions(seen, source_P):
            losses.append(self._compare(predicted_PW, target_PE, token_P, seen.batch.num_images))
            if self.metrics:
                cosines.append(F.cosine_similarity(predicted_PW.detach(), target_PE, dim=-1).sum())
        return torch.stack(losses).mean(), dict(cosine=torch.stack(cosines).mean()) if cosines else {}

    def inspect(self, seen: Seen, truth: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Return ``cosine``: the cosine similarity of each token, the mean over the taps."""
        if not self.metrics:
            return None
        target_PE, source_P, token_P = self.target_features(seen, truth)
        predicted = self.predictions(seen, source_P)
        cosines_P = torch.stack([F.cosine_similarity(own_PE, target_PE, dim=-1) for own_PE in predicted]).mean(0)
        found = cosines_P.new_full((seen.batch.num_images * self.num_tokens,), float("nan"))
        found[slice(None) if token_P is None else token_P] = cosines_P
        return dict(cosine=found.view(seen.batch.num_images, self.num_tokens))

    # Parts -------------------------------------------------------------------------------------------------

    def predictions(self, seen: Seen, source_P: Tensor) -> list[Tensor]:
        """Return the predictions (P, W) float32 of each tap, from the hidden states at these flat positions."""
        states = [seen.hidden[tap][source_P].float() for tap in self.taps]
        if self.head is None:
            return states
        heads = list(self.head) * (len(self.taps) // len(self.head))
        return [head(hidden_PH).float() for head, hidden_PH in zip(heads, states, strict=True)]

    def target_features(self, seen: Seen, truth: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the target features (P, E), and the two indices of `Target.places`."""
        source_P, token_P = self.places(seen)
        target_PE = self.features(truth, seen.batch).flatten(0, 1)
        target_PE = target_PE if token_P is None else target_PE[token_P]
        return F.layer_norm(target_PE, target_PE.shape[-1:]) if self.normalize else target_PE, source_P, token_P

    def _compare(self, predicted_PW: Tensor, target_PE: Tensor, token_P: Tensor | None, images: int) -> Tensor:
        if not self.of_images:
            return self.criterion(predicted_PW, target_PE)
        if token_P is None:
            return self.criterion(*(rows.unflatten(0, (images, -1)) for rows in (predicted_PW, target_PE)), None)

        def by_image(rows: Tensor) -> Tensor:
            cells = rows.new_zeros(images * self.num_tokens, *rows.shape[1:])
            return cells.index_copy(0, token_P, rows).unflatten(0, (images, -1))

        there_IN = by_image(torch.ones_like(token_P, dtype=torch.bool))
        return self.criterion(by_image(predicted_PW), by_image(target_PE), there_IN)


@TARGETS.register_module()
class FeatureTarget(ContinuousTarget):
    """The features of a frozen vision encoder, the teacher (VIRAL), or of the model's own encoder (MetaMorph).

    VIRAL: https://arxiv.org/abs/2509.07979. MetaMorph's visual prediction: https://arxiv.org/abs/2412.14164.

    teacher: config of an encoder, which sees the image through its own transform. None: the features of the model's own
        encoder.
    resample: ``bilinear``, ``bicubic`` or ``area``: how the teacher's features are resampled to the encoder's grid.
        None: the grids must agree.

    The other arguments are those of `ContinuousTarget` and `Target`. With ``data.cache=True`` the teacher's features
    are cached, on the encoder's grid and in the teacher's dtype. Raises ``ValueError`` if grids or widths do not fit.
    """

    def __init__(
        self,
        *,
        encoder,
        teacher: dict | None = None,
        resample: str | None = None,
        load_weights: bool = True,
        key: str = "target",
        **own,
    ):
        given = dict(encoder=encoder, resample=resample, key=key, load_weights=load_weights)
        self.made_by = FeatureTruth(teacher, **given)
        self.teacher, self.width = self.made_by.teacher, self.made_by.width
        super().__init__(encoder=encoder, load_weights=load_weights, key=key, **own)

    def views(self) -> dict[str, ImageTransform]:
        return self.made_by.views(self.name)

    def truth_spec(self) -> dict[str, TensorSpec] | None:
        spec = self.made_by.spec()
        return None if spec is None else dict(features=spec)

    def truth(self, pixels: dict[str, Pixels], features_INE: Tensor | None) -> dict[str, Tensor]:
        return dict(features=self.made_by.features(pixels.get(self.name), features_INE))

    def features(self, truth: dict[str, Tensor], batch: Batch) -> Tensor:
        return self.made_by.by_cell(truth["features"], batch)

    def cache_key(self) -> str:
        return f"{super().cache_key()} {source_of_class(FeatureTruth)}"

    def describe(self) -> str:
        whose = "the encoder's" if self.teacher is None else f"{type(self.teacher).__name__}'s"
        return f"{whose} {self.width} features"


def _check_loss(criterion, of_images: bool, key: str) -> None:
    """Raise ``ValueError`` for a loss that takes other arguments, such as a loss of codes."""
    function = criterion.forward if isinstance(criterion, nn.Module) else criterion
    parameters = inspect.signature(function).parameters.values()
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) > (3 if of_images else 2):
        name = type(criterion).__name__ if isinstance(criterion, nn.Module) else function.__name__
        raise ValueError(
            f"{key}.type={name!r} takes {', '.join(needed)}: a loss of features takes predicted_PE and target_PE, such "
            "as CosineLoss, L1Loss, MSELoss, SmoothL1Loss or SimilarityLoss"
        )
