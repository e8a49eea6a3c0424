"""How sure a difference between two ways of training is.

Legend: ``R`` runs (one a seed), ``Q`` questions. ``right_RQ`` is True where a run answered a question right; runs of
two arms with the same seed stand in the same row, and the questions are the same ones.
"""

import math
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000
POWER = 1 + 0.84 / 1.96  # half intervals between nothing and what 80 % of studies would find


@dataclass(frozen=True)
class Difference:
    """Shares of questions, from -1 to 1: the mean, and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def paired_bootstrap(
    right_RQ: np.ndarray, other_RQ: np.ndarray, scenes_Q: np.ndarray, *, draws: int = DRAWS, seed: int = 0
) -> Difference:
    """``right`` less ``other``: percentiles over draws, with replacement, of scenes (whose questions stay together) and
    of seeds (whose two runs stay together)."""
    scene_Q = np.unique(scenes_Q, return_inverse=True)[1]
    count = scene_Q.max() + 1
    asked = np.bincount(scene_Q, minlength=count)
    gains_RQ = right_RQ.astype(float) - other_RQ.astype(float)
    gains = np.stack([np.bincount(scene_Q, weights=gain_Q, minlength=count) for gain_Q in gains_RQ])  # (R, scenes)
    rng, runs = np.random.default_rng(seed), len(gains)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    by_run = (weights @ gains.T) / (weights @ asked)[:, None]
    chosen = rng.integers(0, runs, size=(draws, runs))
    means = np.take_along_axis(by_run, chosen, axis=1).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Difference(float(gains_RQ.mean()), float(low), float(high))


def mcnemar(right_RQ: np.ndarray, other_RQ: np.ndarray) -> float:
    """Two-sided exact p of McNemar's test on the questions of all runs, taken as independent: of those that one side
    alone answered right, either side has half by chance."""
    gained, lost = int((right_RQ & ~other_RQ).sum()), int((~right_RQ & other_RQ).sum())
    changed, fewer = gained + lost, min(gained, lost)
    if changed == 0:
        return 1.0
    logs = [_log_choose(changed, k) - changed * math.log(2) for k in range(fewer + 1)]
    largest = max(logs)
    return min(1.0, 2 * math.exp(largest) * math.fsum(math.exp(value - largest) for value in logs))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def detectable(right_RQ: np.ndarray, scenes_Q: np.ndarray, *, draws: int = DRAWS) -> float:
    """The smallest difference that a study with as many seeds and questions would find four times of five, by the
    baseline alone: against its own runs of other seeds it stands as an arm would that is as good.

    Raises ``ValueError`` for a single run, which tells nothing about seeds.
    """
    if len(right_RQ) < 2:
        raise ValueError("the smallest detectable difference needs at least two runs of the baseline")
    found = paired_bootstrap(right_RQ, np.roll(right_RQ, 1, axis=0), scenes_Q, draws=draws)
    return POWER * (found.high - found.low) / 2
