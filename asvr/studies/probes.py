"""Linear probes: how well a classifier without hidden units reads a fact from hidden states.

The classifier is a multinomial logistic regression with an L2 penalty. Least squares on one-hot values would be
simpler, but it hides classes that lie between two others, such as three between two and four.

Legend: ``Q`` rows (a fact and the state that it is read from), ``H`` width of a state, ``K`` classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (1.0, 0.1, 1e-2, 1e-3, 1e-4)  # from strong to weak
FIT, CHOOSE, TEST = range(3)
SHARES = (0.6, 0.2, 0.2)  # of the scenes in each part
LEAST_SCENES = 10
STEPS = 200  # the most steps of the optimiser


@dataclass(frozen=True)
class Fitted:
    """What a probe found on the rows of the test part.

    right_Q: whether the classifier was right. guess_Q: whether the most frequent class of the fit part was right.
    penalty: the chosen one.
    """

    right_Q: np.ndarray
    guess_Q: np.ndarray
    penalty: float


def parts_of(scenes: int) -> np.ndarray:
    """The part of each scene: the first scenes are for ``FIT``, the next for ``CHOOSE``, the last for ``TEST``.

    Scenes are drawn independently, so their order has no meaning. Raises ``ValueError`` for too few scenes."""
    if scenes < LEAST_SCENES:
        raise ValueError(f"{scenes} scenes are too few for probes: expected at least {LEAST_SCENES}")
    fit, choose = round(SHARES[FIT] * scenes), round(SHARES[CHOOSE] * scenes)
    return np.repeat([FIT, CHOOSE, TEST], [fit, choose, scenes - fit - choose])


def fit_probe(
    states_QH: Tensor, class_Q: np.ndarray, part_Q: np.ndarray, *, penalties: Sequence[float] = PENALTIES
) -> Fitted:
    """Train a classifier on the rows of part ``FIT``, and try it on those of part ``TEST``.

    The penalty is the one with most right answers on part ``CHOOSE``; the strongest of several. Mean and spread of the
    inputs are those of part ``FIT``. The part ``TEST`` decides nothing. A class that part ``FIT`` lacks is never
    predicted. All is computed in float64 on the CPU, so equal states give equal results.
    """
    states_QH = states_QH.detach().to("cpu", torch.float64)
    rows = {part: torch.from_numpy(np.flatnonzero(part_Q == part)) for part in (FIT, CHOOSE, TEST)}
    fit_QH = states_QH[rows[FIT]]
    spread_H = fit_QH.std(0, correction=0)
    spread_H = torch.where(spread_H > 1e-12, spread_H, 1.0)  # a constant input says nothing
    states_QH = (states_QH - fit_QH.mean(0)) / spread_H
    known_K, number_Q = np.unique(class_Q[part_Q == FIT], return_inverse=True)
    fitted_Q, class_tensor = torch.from_numpy(number_Q), torch.from_numpy(class_Q)

    def right(part: int, weights_HK: Tensor) -> np.ndarray:
        chosen_Q = _scores(states_QH[rows[part]], weights_HK).argmax(1)
        return (torch.from_numpy(known_K)[chosen_Q] == class_tensor[rows[part]]).numpy()

    best, best_share = None, -1.0
    weights_HK = torch.zeros(states_QH.shape[1] + 1, len(known_K), dtype=torch.float64)
    for penalty in sorted(penalties, reverse=True):  # each begins where the one before ended
        weights_HK = _fitted(states_QH[rows[FIT]], fitted_Q, penalty, weights_HK)
        if (share := float(right(CHOOSE, weights_HK).mean())) > best_share:
            best, best_share = (weights_HK, penalty), share
    assert best is not None
    most_frequent = known_K[np.bincount(number_Q).argmax()]
    return Fitted(right(TEST, best[0]), class_Q[part_Q == TEST] == most_frequent, best[1])


def _scores(states_QH: Tensor, weights_HK: Tensor) -> Tensor:
    """The last row of the weights is the bias."""
    return states_QH @ weights_HK[:-1] + weights_HK[-1]


def _fitted(states_QH: Tensor, class_Q: Tensor, penalty: float, begin_HK: Tensor) -> Tensor:
    """The weights with the least mean cross-entropy plus ``penalty / 2`` times their squares. The bias is free."""
    weights_HK = begin_HK.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights_HK],
        max_iter=STEPS,
        tolerance_grad=1e-5,
        tolerance_change=1e-10,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(_scores(states_QH, weights_HK), class_Q)
        value = value + penalty / 2 * weights_HK[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weights_HK.detach()
