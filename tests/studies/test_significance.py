"""Intervals that hold what they promise, on data whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t

from asvr.studies.significance import detectable, mcnemar, paired_bootstrap


def simulate(rng, *, runs=3, scenes=120, each=4, base=0.6, gain=0.0, by_seed=0.0):
    """Two arms whose questions of one scene go together, and whose seeds differ by ``by_seed``."""
    scene_Q = np.repeat(np.arange(scenes), each)
    level_Q = np.clip(base + 0.2 * rng.standard_normal(scenes)[scene_Q], 0.02, 0.98)
    arms = []
    for shift in (gain, 0.0):
        level_RQ = level_Q + shift + by_seed * rng.standard_normal((runs, 1))
        arms.append(rng.random((runs, len(scene_Q))) < level_RQ)
    return *arms, scene_Q


def share_held(runs: int, by_seed: float, level: float = 0.95, trials: int = 300) -> float:
    """How many intervals hold the true difference."""
    rng, held, gain = np.random.default_rng(0), 0, 0.05
    for trial in range(trials):
        right, other, scenes = simulate(rng, runs=runs, gain=gain, by_seed=by_seed)
        found = paired_bootstrap(right, other, scenes, draws=300, seed=trial, level=level)
        held += found.low <= gain <= found.high
    return held / trials


@pytest.mark.parametrize("by_seed", [0.0, 0.01, 0.05])
def test_the_interval_holds_the_true_difference_nineteen_times_of_twenty(by_seed):
    """Three seeds, whether they or the questions decide how far it is off."""
    assert 0.91 < share_held(3, by_seed) < 0.99


@pytest.mark.parametrize("by_seed", [0.0, 0.05])
def test_a_lower_level_holds_less(by_seed):
    assert 0.44 < share_held(3, by_seed, level=0.5) < 0.6


@pytest.mark.parametrize(("runs", "least", "most"), [(3, 0.955, 0.985), (6, 0.98, 1.0)])
def test_the_level_of_four_deciding_pairs_needs_six_seeds(runs, least, most):
    """98.75 %: three seeds hold less than that, if seeds differ much."""
    assert least < share_held(runs, 0.05, level=0.9875, trials=600) < most


@pytest.mark.parametrize(("runs", "least", "most"), [(1, 0.58, 0.68), (2, 0.87, 0.93)])
def test_the_interval_of_fewer_seeds_holds_less(runs, least, most):
    """Seeds that differ by 5 points: this is why a report warns of fewer than three."""
    assert least < share_held(runs, 0.05) < most


def by_hand(right: np.ndarray, other: np.ndarray, scenes: np.ndarray) -> tuple[float, float]:
    """Mean and half width, as docs/guides/studies.md describes them."""
    gains, runs = right.astype(float) - other, len(right)
    draws, rng = [], np.random.default_rng(1)
    of_scene = [np.flatnonzero(scenes == scene) for scene in np.unique(scenes)]
    for _ in range(4000):
        drawn = np.concatenate([of_scene[i] for i in rng.integers(len(of_scene), size=len(of_scene))])
        draws.append(gains[:, drawn].mean(1))
    draws, spread = np.array(draws), gains.mean(1).var(ddof=1)
    by_scenes = np.mean([np.var(draws[:, r] - draws.mean(1)) for r in range(runs)]) * runs / (runs - 1)
    variance = draws.mean(1).var() + max(spread - by_scenes, 0) / runs
    freedom = variance**2 / ((spread / runs) ** 2 / (runs - 1))
    return gains.mean(), t.ppf(0.975, freedom) * np.sqrt(variance)


@pytest.mark.parametrize(("runs", "by_seed"), [(2, 0.02), (3, 0.0), (3, 0.05), (5, 0.02)])
def test_the_interval_is_the_one_that_the_guide_describes(runs, by_seed):
    right, other, scenes = simulate(np.random.default_rng(5), runs=runs, scenes=60, by_seed=by_seed)
    found = paired_bootstrap(right, other, scenes)
    mean, half = by_hand(right, other, scenes)
    assert found.mean == pytest.approx(mean) and found.high - found.mean == pytest.approx(half, rel=0.05)


def test_questions_of_a_scene_stay_together():
    """Ten copies of each question tell no more than one."""
    rng = np.random.default_rng(1)
    right, other = rng.random((2, 3, 200)) < 0.6
    widths = []
    for copies in (1, 10):
        scenes = np.repeat(np.arange(200), copies)
        found = paired_bootstrap(right.repeat(copies, 1), other.repeat(copies, 1), scenes, draws=2000)
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


@pytest.mark.parametrize("runs", [1, 2, 3])
@pytest.mark.parametrize(
    "case", ["the same answers", "all wrong", "all right", "all gained", "all lost", "one of three in each scene"]
)
def test_without_spread_there_is_no_interval(case, runs):
    """A width of zero would say that the difference is known exactly."""
    right = np.random.default_rng(2).random((runs, 60)) < 0.5
    right, other = {
        "the same answers": (right, right),
        "all wrong": (right & False, right & False),
        "all right": (right | True, right | True),
        "all gained": (right | True, right & False),
        "all lost": (right & False, right | True),
        "one of three in each scene": (np.tile([True, False, False], (runs, 20)), right & False),
    }[case]
    found = paired_bootstrap(right, other, np.arange(60) // 3, draws=100)
    assert found.mean == pytest.approx(right.mean() - other.mean()) and (found.low, found.high) == (None, None)
    assert str(found) == f"{100 * found.mean:+.1f} (-)"


def test_a_single_scene_has_no_interval():
    right, other = np.array([[True, False]]), np.array([[False, False]])
    assert paired_bootstrap(right, other, np.zeros(2)).low is None


def test_one_changed_answer_is_a_spread():
    right = np.zeros((2, 60), bool)
    right[0, 0] = True
    found = paired_bootstrap(right, right & False, np.arange(60) // 3, draws=100)
    assert found.low < found.mean < found.high


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_is_detectable_is_unknown_if_seeds_do_not_differ(share):
    right = np.tile(np.arange(10) < 10 * share, (3, 1))
    assert detectable(right) is None


def test_equal_arms_have_the_largest_p():
    right = np.random.default_rng(2).random((2, 50)) < 0.5
    assert mcnemar(right, right) == 1


def test_mcnemar_is_the_binomial_test():
    """9 gained, 1 lost: 2 * (1 + 10) / 1024."""
    right = np.array([[True] * 9 + [False] + [True] * 5])
    other = np.array([[False] * 9 + [True] + [True] * 5])
    assert mcnemar(right, other) == pytest.approx(22 / 1024) == mcnemar(other, right)


@given(st.integers(0, 400), st.integers(0, 400))
@settings(max_examples=30, deadline=None)
def test_mcnemar_is_a_probability(gained, lost):
    right = np.array([[True] * gained + [False] * lost + [True]])
    other = np.array([[False] * gained + [True] * lost + [True]])
    p = mcnemar(right, other)
    assert 0 <= p <= 1 and (p > 0.99 if gained == lost else True)


def test_four_of_five_studies_find_what_is_detectable():
    rng, found, size = np.random.default_rng(3), 0, []
    for _ in range(40):
        _, baseline, scenes = simulate(rng, by_seed=0.02, scenes=200)
        size.append(detectable(baseline))
    gain = float(np.mean(size))
    for trial in range(60):
        right, other, scenes = simulate(rng, by_seed=0.02, scenes=200, gain=gain)
        interval = paired_bootstrap(right, other, scenes, draws=300, seed=trial)
        found += interval.low > 0
    assert 0.7 < found / 60 <= 1
    with pytest.raises(ValueError, match="at least two runs"):
        detectable(baseline[:1])
