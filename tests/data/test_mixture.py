"""Sources are drawn in their shares, each through orders of its own, from any position as if begun at the first."""

from collections import Counter
from fractions import Fraction
from itertools import accumulate, islice

import pytest
from data_helpers import byte_level
from hypothesis import given, settings
from hypothesis import strategies as st

from asvr.data.mixture import WINDOW, Mixture, MixtureSampler, Shares
from asvr.data.records import ConversationDataset
from asvr.data.refusals import Refusal, Refused
from asvr.data.samplers import ResumableSampler
from asvr.data.text_tokenizer import ByteLevelBPE
from asvr.registry import DATASETS

WEIGHTS = st.lists(
    st.one_of(st.integers(1, 50), st.floats(0.001, 100), st.sampled_from([0.1, 0.7, 1e-3, 1e6])), min_size=1, max_size=6
)


@pytest.fixture(scope="module", autouse=True)
def listed():
    """A dataset of a list of records, in the registry."""

    @DATASETS.register_module()
    class Listed(ConversationDataset):
        def __init__(self, *, records: list, source: str = "list", **kwargs):
            super().__init__(**kwargs)
            self.source, self.records = source, records

        def __len__(self) -> int:
            return len(self.records)

        def record(self, i: int) -> dict:
            return self.records[i]

        def image(self, name: str) -> tuple[str, str]:
            return f"images/{name}", __file__

    yield Listed
    DATASETS.module_dict.pop("Listed")


def source(of: str, count: int, **fields) -> dict:
    chats = [
        [{"from": "human", "value": f"{of} {i}?"}, {"from": "gpt", "value": f"it is {of} {i}"}] for i in range(count)
    ]
    records = [dict(image=f"{i % 3}.png", conversations=chat) for i, chat in enumerate(chats)]
    return dict(dataset=dict(type="Listed", records=records, source=of), **fields)


def mixture(*sources: dict, **kwargs) -> Mixture:
    return DATASETS.build(dict(type="Mixture", sources=list(sources)), default_args=kwargs)


@settings(deadline=None)
@given(weights=WEIGHTS, length=st.integers(0, 120))
def test_every_source_has_its_share_at_every_position(weights, length):
    shares, drawn = Shares(weights), [0] * len(weights)
    exact = [Fraction(str(w)) for w in weights]
    for position in range(length + 1):
        for count, weight in zip(drawn, exact, strict=True):
            share = weight / sum(exact)
            assert abs(count - share * position) <= (share * len(weights) + 1) / 2  # Webster's rounding
        assert shares.drawn(position) == drawn  # as if counted from the first
        drawn[shares.next(drawn)] += 1


@given(weights=WEIGHTS, position=st.integers(0, 10**12))
def test_counts_at_any_position_add_up_and_go_on(weights, position):
    shares = Shares(weights)
    drawn = shares.drawn(position)
    assert sum(drawn) == position
    drawn[shares.next(drawn)] += 1
    assert shares.drawn(position + 1) == drawn


def test_whole_shares_are_exact():
    """After every full round of the weights, and for two sources never more than half a sample beside it."""
    assert Shares([0.7, 0.2, 0.1]).drawn(10**9) == [700_000_000, 200_000_000, 100_000_000]
    assert Shares([2, 1]).drawn(3) == Shares([2.0, 1.0]).drawn(3) == [2, 1]
    assert Shares([1]).drawn(5) == [5]


def sampler(lengths: list[int], weights: list, seed: int) -> MixtureSampler:
    own = [ResumableSampler(length=length, seed=seed + i) for i, length in enumerate(lengths)]
    return MixtureSampler(own, lengths=lengths, shares=Shares(weights), seed=seed)


@settings(deadline=None)
@given(
    sources=st.lists(st.tuples(st.integers(1, 8), st.sampled_from([1, 2, 0.3, 5])), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    start=st.integers(0, 80),
)
def test_it_begins_anywhere_as_if_it_had_run_there(sources, seed, start):
    lengths, weights = zip(*sources, strict=True)
    whole = list(islice(sampler(lengths, weights, seed), start + 30))
    other = sampler(lengths, weights, seed)
    ends = list(accumulate(lengths))
    assert other.drawn(start) == [
        sum(end - length <= i < end for i in whole[:start]) for end, length in zip(ends, lengths, strict=True)
    ]
    other.seek(start)
    assert list(islice(other, 30)) == whole[start:]
    other.seek(0)
    assert list(islice(other, 30)) == whole[:30]


@settings(deadline=None)
@given(
    sources=st.lists(st.tuples(st.integers(1, 8), st.sampled_from([1, 2, 0.3, 5])), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_none_comes_twice_before_all_of_its_source_came_once(sources, seed):
    lengths, weights = zip(*sources, strict=True)
    drawn, first = list(islice(sampler(lengths, weights, seed), 100)), 0
    for length in lengths:
        own = [i - first for i in drawn if first <= i < first + length]
        for begin in range(0, len(own), length):
            epoch = own[begin : begin + length]
            assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(length))
        first += length
    assert sum(lengths) == first


def test_sources_of_one_length_have_different_orders_and_other_seeds_other_ones():
    both = mixture(source("a", 40), source("b", 40))

    def orders(seed: int) -> tuple[list, list]:
        drawn = list(islice(both.sampler(seed), 80))
        return [i for i in drawn if i < 40], [i - 40 for i in drawn if i >= 40]

    a, b = orders(0)
    assert sorted(a) == sorted(b) == list(range(40)) and a != b
    assert orders(0) == (a, b) and orders(1)[0] not in (a, b)


def test_it_is_its_sources_one_behind_another():
    kwargs = dict(tokenizer=byte_level(), template="vicuna_v1", max_length=400, num_image_tokens=4)
    both = mixture(source("a", 2, weight=3), source("b", 3, weight=1), **kwargs)
    a, b = both.datasets
    assert len(both) == 5 and both.source == "a + b"
    assert [both.record(i) for i in range(5)] == a.records + b.records
    assert [both[i] for i in range(5)] == [a[0], a[1], b[0], b[1], b[2]]
    assert both.question(4) == b.question(2) and both.sample_id(4) == both[4]["sample_id"] == "b:2"
    assert list(both) == [both[i] for i in range(5)]
    assert list(both.texts()) == [*a.texts(), *b.texts()]
    assert [key for key, _ in both.images()] == ["images/0.png", "images/1.png", "images/2.png"]
    assert both.drawn(WINDOW, 0) == dict(a=24, b=8)
    assert mixture(source("a", 2), source("b", 6)).drawn(WINDOW, 0) == dict(a=8, b=24)  # by their sizes
    ByteLevelBPE(vocab_size=300, corpus=both)


def test_mixtures_may_be_nested():
    inner = dict(dataset=dict(type="Mixture", sources=[source("a", 2), source("b", 2)]), weight=1)
    outer = mixture(inner, source("c", 4, weight=1))
    drawn = list(islice(outer.sampler(0), 2 * WINDOW))
    assert Counter("abc"[(i >= 2) + (i >= 4)] for i in drawn) == dict(a=16, b=16, c=32)
    again = outer.sampler(0)
    again.seek(7)
    assert list(islice(again, WINDOW)) == drawn[7 : 7 + WINDOW]


@pytest.mark.parametrize("processes", [2, 4])
def test_every_process_gets_some_of_every_source(processes):
    """Each takes every n-th sample; sources that take turns would go to one process each."""
    drawn = list(islice(mixture(source("a", 50), source("b", 50)).sampler(0), 100 * WINDOW))
    for rank in range(processes):
        own = [i < 50 for i in drawn[rank::processes]]
        assert 0.45 < sum(own) / len(own) < 0.55


def test_the_fingerprint_follows_weights_and_records():
    def of(count: int, weight: float, **fields) -> str:
        return mixture(source("a", 2, weight=weight, **fields), source("b", count, weight=1)).fingerprint()

    assert of(2, 1) == of(2, 1.0) == of(2, 1, name="other")
    assert len({of(2, 1), of(2, 2), of(3, 1)}) == 3


def test_a_refusal_names_its_own_source():
    bad = dict(dataset=dict(type="Listed", records=[dict(id=1)], source="bad"))
    kwargs = dict(tokenizer=byte_level(), template="vicuna_v1")
    with pytest.raises(Refused, match="bad, record 0: "):
        mixture(source("a", 2), bad, **kwargs)[2]
    refusal = mixture(source("a", 2), bad, on_error="skip", **kwargs)[2]
    assert isinstance(refusal, Refusal) and refusal.sample_id == "bad:0"


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "sources is empty"),
        ([source("a", 1, weight=0)], r"sources\[0\].weight=0: expected a positive number"),
        ([source("a", 1, weight=1), source("b", 1)], r"sources\[1\].weight=None: .* or for none"),
        ([source("a", 1, weight=float("inf"))], "weight=inf"),
        ([source("a", 1, weight="2")], "weight='2'"),
        ([source("a", 1), source("a", 2)], "two sources have the name 'a'"),
    ],
)
def test_mistakes_are_refused(sources, message):
    with pytest.raises(ValueError, match=message):
        mixture(*sources)


def test_a_name_tells_two_of_one_file_apart():
    assert mixture(source("a", 1), source("a", 1, name="again")).drawn(WINDOW, 0) == dict(a=16, again=16)
