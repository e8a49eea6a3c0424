"""Confidence intervals and tests for the difference between two arms of a study.

Legend: ``R`` runs (one for each seed), ``Q`` questions. ``right_RQ`` is True where a run answered a question right. Row
``r`` of two arms has the same seed, and column ``q`` has the same question.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct, t

DRAWS = 10_000
LEVEL = 0.95  # of an interval
NO_SPREAD = 1e-20  # a variance of shares; rounding alone gives up to about 1e-31, one answer of a million 1e-12
POWER = 0.8  # the share of studies that find a difference of the smallest detectable size


@dataclass(frozen=True)
class Difference:
    """A difference between two shares of right answers (-1 to 1), with its confidence interval.

    low, high: None if the interval cannot be estimated, because nothing spreads.
    """

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None:
            return f"{100 * self.mean:+.1f} (-)"
        return f"{100 * self.mean:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def paired_bootstrap(
    right_RQ: np.ndarray,
    other_RQ: np.ndarray,
    scenes_Q: np.ndarray,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> Difference:
    """The mean of ``right`` minus ``other``. Its interval covers other scenes and other seeds.

    level: of the interval. For k comparisons that all decide, ``1 - 0.05 / k`` is Bonferroni's. With few seeds an
    interval at a high level holds the truth less often than it says (tests/studies/test_significance.py).

    Scenes and seeds are random, and crossed: every seed answers the questions of every scene. The variance has two
    parts. The part of the scenes is bootstrapped; all questions of a scene stay together. The part of the seeds is the
    spread between runs that scenes do not explain. It is not bootstrapped, because there are few seeds: with three, an
    interval by bootstrap would miss the true value one time in four. Student's t has the degrees of freedom of both
    parts together (Welch and Satterthwaite). With a single run the part of the seeds is unknown and left out.

    There is no interval if the difference is the same in all scenes and all runs. Then nothing shows how much other
    scenes or seeds would change it.
    """
    gains_RQ = right_RQ.astype(float) - other_RQ.astype(float)
    runs, mean = len(gains_RQ), float(gains_RQ.mean())
    by_run = _resampled(gains_RQ, scenes_Q, draws, seed)
    of_scenes = by_run.mean(1).var()
    # The part of a single run's spread that comes from its questions.
    alone = (by_run - by_run.mean(1, keepdims=True)).var(0).sum() / max(runs - 1, 1)
    spread = gains_RQ.mean(1).var(ddof=1) if runs > 1 else 0.0
    of_seeds = max(spread - alone, 0.0) / runs
    variance = of_scenes + of_seeds
    if variance < NO_SPREAD:
        return Difference(mean, None, None)
    freedom = (runs - 1) * (variance * runs / spread) ** 2 if spread > 0 else math.inf
    half = float(t.ppf((1 + level) / 2, freedom) * math.sqrt(variance))
    return Difference(mean, mean - half, mean + half)


def _resampled(gains_RQ: np.ndarray, scenes_Q: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """(draws, R): the mean gain of each run over scenes drawn with replacement. All runs get the same scenes."""
    scene_Q = np.unique(scenes_Q, return_inverse=True)[1]
    count = scene_Q.max() + 1
    asked = np.bincount(scene_Q, minlength=count)
    gains = np.stack([np.bincount(scene_Q, weights=gain_Q, minlength=count) for gain_Q in gains_RQ])  # (R, scenes)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    return (weights @ gains.T) / (weights @ asked)[:, None]


def mcnemar(right_RQ: np.ndarray, other_RQ: np.ndarray) -> float:
    """The two-sided exact p of McNemar's test on the questions of all runs. It takes them as independent.

    It looks at the questions that only one side answered right. By chance each side has half of them.
    """
    gained, lost = int((right_RQ & ~other_RQ).sum()), int((~right_RQ & other_RQ).sum())
    changed, fewer = gained + lost, min(gained, lost)
    if changed == 0:
        return 1.0
    logs = [_log_choose(changed, k) - changed * math.log(2) for k in range(fewer + 1)]
    largest = max(logs)
    return min(1.0, 2 * math.exp(largest) * math.fsum(math.exp(value - largest) for value in logs))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def detectable(right_RQ: np.ndarray, *, seeds: int | None = None, level: float = LEVEL) -> float | None:
    """The smallest difference that four of five studies with as many questions would find.

    seeds: of both arms in such a study, at least 2; None: as many as these runs. level: of the interval that has to
    exclude zero.

    It is estimated from the runs of the baseline: an arm that is equally good is taken to differ from the baseline as
    these runs differ from one another. None if these runs do not differ: their spread cannot be estimated then. Raises
    ``ValueError`` for a single run.
    """
    runs = len(right_RQ)
    if runs < 2:
        raise ValueError("the smallest detectable difference needs at least two runs of the baseline")
    share_R = right_RQ.mean(1)
    between = np.mean([(share_R[i] - share_R[j]) ** 2 for i in range(runs) for j in range(i)])
    if between < NO_SPREAD:
        return None
    seeds = seeds or runs
    critical = t.ppf((1 + level) / 2, seeds - 1)
    steps = brentq(lambda shift: nct.sf(critical, seeds - 1, shift) - POWER, 0, 10 * critical)  # in standard errors
    return float(steps * math.sqrt(between / seeds))
