"""Which samples share a micro-batch: each once, within the limits, and nearly nothing wasted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asvr.data.packing import Balance, best_fit_decreasing, deal, group_rows

SAMPLES = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), max_size=40)


@given(samples=SAMPLES, max_tokens=st.integers(40, 90), max_images=st.one_of(st.none(), st.integers(3, 6)))
def test_each_sample_is_in_one_bin_within_the_limits(samples, max_tokens, max_images):
    lengths, images = [a for a, _ in samples], [b for _, b in samples]
    bins = best_fit_decreasing(lengths, images, max_tokens=max_tokens, max_images=max_images)
    assert sorted(i for members in bins for i in members) == list(range(len(samples)))
    for members in bins:
        assert members == sorted(members) and sum(lengths[i] for i in members) <= max_tokens
        assert max_images is None or sum(images[i] for i in members) <= max_images


def fewest_bins(lengths: list[int], room: list[int], max_tokens: int) -> int:
    """By trying everything. room: what is left in the bins so far."""
    if not lengths:
        return len(room)
    first, rest = lengths[0], lengths[1:]
    tries = [[*room[:b], left - first, *room[b + 1 :]] for b, left in enumerate(room) if left >= first]
    return min(fewest_bins(rest, bins, max_tokens) for bins in [*tries, [*room, max_tokens - first]])


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=7), max_tokens=st.integers(20, 40))
def test_bins_are_about_as_few_as_can_be(lengths, max_tokens):
    """Best fit decreasing needs at most 11/9 of the fewest bins, and 6/9 (Dosa's bound, of first fit decreasing)."""
    bins = best_fit_decreasing(lengths, [0] * len(lengths), max_tokens=max_tokens)
    assert len(bins) <= (11 * fewest_bins(lengths, [], max_tokens) + 6) / 9


def test_a_sample_above_the_limit_is_alone():
    assert best_fit_decreasing([5, 99, 5], [0, 0, 0], max_tokens=10) == [[1], [0, 2]]


def test_the_fullest_bin_that_has_room_is_taken():
    assert best_fit_decreasing([7, 6, 4, 3], [0] * 4, max_tokens=10) == [[0, 3], [1, 2]]


@given(samples=SAMPLES, rows=st.integers(1, 7), by=st.sampled_from(["length", "modality"]))
def test_groups_hold_each_sample_once(samples, rows, by):
    lengths, images = [a for a, _ in samples], [b for _, b in samples]
    groups = group_rows(lengths, images, rows=rows, by=by)
    assert sorted(i for members in groups for i in members) == list(range(len(samples)))
    assert all(1 <= len(members) <= rows for members in groups)
    if by == "modality":
        assert all(len({bool(images[i]) for i in members}) == 1 for members in groups)
    else:
        ordered = [sorted((lengths[i] for i in members), reverse=True) for members in groups]
        assert sorted(lengths, reverse=True) == [length for members in ordered for length in members]


@pytest.mark.parametrize(("global_batch", "micro_batch", "least"), [(128, 16, 0.98), (128, 8, 0.97)])
def test_bins_are_full_at_lengths_like_llavas(global_batch, micro_batch, least):
    """Of all bins but the last, which is as full as what is left over. Nothing is padded up to the limit: the fill
    tells how even the micro-batches are, and no position is wasted."""
    random = np.random.default_rng(0)
    for _ in range(5):
        text = np.clip(random.lognormal(5.0, 0.7, global_batch).astype(int), 20, 1300)
        images = (random.random(global_batch) > 0.06).astype(int)
        lengths = (text + 729 * images).tolist()
        limit = micro_batch * 2048
        bins = best_fit_decreasing(lengths, images.tolist(), max_tokens=limit)
        fill = sorted(sum(lengths[i] for i in members) / limit for members in bins)[1:]
        assert np.mean(fill) >= least


@given(costs=st.lists(st.floats(0.1, 50), max_size=40), shares=st.integers(1, 9))
def test_each_sample_is_dealt_once_and_no_share_is_far_above_the_best(costs, shares):
    dealt = deal(costs, shares)
    assert len(dealt) == shares and sorted(i for own in dealt for i in own) == list(range(len(costs)))
    largest = max(sum(costs[i] for i in own) for own in dealt)
    least = max([sum(costs) / shares, *costs])  # no way to deal has a smaller largest share
    assert largest <= 2 * least * (1 + 1e-9)  # any list scheduling
    assert all(own == sorted(own) for own in dealt)


def test_shares_by_hand():
    assert sorted(deal([5, 5, 4, 4, 3, 3, 3], 3)) == [[0, 2], [1, 3], [4, 5, 6]]  # 9 each; LPT alone would end at 11
    assert deal([], 2) == [[], []] and deal([1.0], 3) == [[0], [], []]


def test_processes_agree_on_their_shares():
    lengths, crops = [700, 20, 30, 760, 40, 10], [1, 0, 0, 1, 0, 0]
    costs = dict(token=1.0, pair=0.001, crop=100.0)
    shares = [Balance(rank=rank, world_size=2, **costs).own(lengths, crops) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == list(range(6))
    assert {0, 3} & set(shares[0]) and {0, 3} & set(shares[1])  # each gets one of the long ones
    assert Balance(rank=0, world_size=2, **costs).cost(10, 2) == 10 + 0.1 + 200
