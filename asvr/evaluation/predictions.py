"""Predictions of a model at the visual tokens of its images, and maps of them.

Legend: ``I`` images of the encoder (each crop counts as one), ``N`` cells of an image, ``M`` cells of a tokenizer's own
grid, ``D`` code depth.
"""

import itertools
from dataclasses import dataclass
from math import prod

import torch

from asvr.data.batch import Batch
from asvr.models.targets import Seen


@dataclass(frozen=True)
class PredictedCodes:
    """The predictions of a head for each visual token. The true codes of the depths before are given, as in training.

    At a token that no hidden state predicts, predicted_IND is the true code and probability_IND is NaN. own_IMD: the
    true codes on the tokenizer's own grid.
    """

    predicted_IND: torch.Tensor
    probability_IND: torch.Tensor
    true_IND: torch.Tensor
    own_IMD: torch.Tensor

    @property
    def right_IND(self) -> torch.Tensor:
        """1 where a code was predicted right, else 0; NaN at a token that no hidden state predicts."""
        right_IND = (self.predicted_IND == self.true_IND).float()
        return right_IND.masked_fill(self.probability_IND.isnan(), float("nan"))


def predicted_codes(model, target, batch: Batch) -> PredictedCodes:
    embeds_BTH, features_INE = model.embed(batch)
    hidden = model.hidden(batch, embeds_BTH, {target.tap})[target.tap]
    truth = model.truth(target, batch, features_INE)
    own_IMD, true_IND = truth["codes"].long(), target.codes_by_cell(truth, batch)
    source_P, token_P = target.positions.places(batch, target.shift, training=False)
    codes_PD = true_IND.flatten(0, 1)
    own_P = torch.arange(len(codes_PD), device=codes_PD.device) if token_P is None else token_P
    predicted = codes_PD.clone()
    probability = torch.full(codes_PD.shape, float("nan"), device=codes_PD.device)
    some = {} if token_P is None else dict(token_P=token_P)
    predicted[own_P], probability[own_P] = target.predict(hidden[source_P], codes_PD[own_P], **some)
    return PredictedCodes(predicted.view(true_IND.shape), probability.view(true_IND.shape), true_IND, own_IMD)


def inspected(model, target, batch: Batch) -> dict[str, torch.Tensor] | None:
    """The result of `Target.inspect` for a batch."""
    embeds_BTH, features_INE = model.embed(batch)
    masked = target.mask(batch, training=False)
    seen = Seen(
        batch=batch,
        hidden=model.hidden(batch, embeds_BTH, set(target.taps) | {-1}, masked),
        features_INE=features_INE,
        training=False,
        masked=masked,
        embeds_BTH=embeds_BTH,
        rule=model.attention_rule(batch),
    )
    return target.inspect(seen, model.truth(target, batch, features_INE) | target.teach(seen))


def right_codes(model, target, batch: Batch) -> torch.Tensor:
    """See `PredictedCodes.right_IND`."""
    return predicted_codes(model, target, batch).right_IND


def of_images(values_IND: torch.Tensor, crops: list[int]) -> torch.Tensor:
    """The mean over the tokens of each whole image. NaN values are left out."""
    if len(crops) == len(values_IND):
        return values_IND.nanmean(1)
    return torch.stack([values_KND.flatten(0, 1).nanmean(0) for values_KND in values_IND.split(crops)])


def maps_of(values_IN: torch.Tensor, batch: Batch, grid: tuple[int, int]) -> list[torch.Tensor]:
    """A map (rows, columns) of each image, or of its first crop if it is cut. grid: the encoder's."""
    first = [0, *itertools.accumulate(batch.crops)][:-1]
    own = [(values_IN[i], batch.grid_of(i, grid)) for i in first]
    return [values_N[: prod(grid)].view(*grid) for values_N, grid in own]
