from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from asvr.data.samplers import BatchSampler, ResumableSampler


@given(length=st.integers(1, 20), seed=st.integers(0, 99), start=st.integers(0, 70))
def test_it_begins_anywhere_as_if_it_had_run_there(length, seed, start):
    whole = list(islice(ResumableSampler(length=length, seed=seed), start + 30))
    sampler = ResumableSampler(length=length, seed=seed)
    sampler.seek(start)
    assert list(islice(sampler, 30)) == whole[start:]
    sampler.seek(0)
    assert list(islice(sampler, 30)) == whole[:30]


@given(length=st.integers(1, 30), seed=st.integers(0, 99))
def test_an_epoch_has_every_sample_once(length, seed):
    order = list(islice(ResumableSampler(length=length, seed=seed), 2 * length))
    assert sorted(order[:length]) == sorted(order[length:]) == list(range(length))


def test_order_depends_on_seed_and_epoch_and_stays_the_same_for_good():
    sampler = ResumableSampler(length=100, seed=1)
    assert sampler.order(0).tolist() != sampler.order(1).tolist()
    assert sampler.order(0).tolist() != ResumableSampler(length=100, seed=2).order(0).tolist()
    assert ResumableSampler(length=8, seed=0).order(0).tolist() == [6, 3, 5, 0, 7, 2, 1, 4]


def test_batches_go_on_from_any_position():
    batches = list(islice(BatchSampler(ResumableSampler(length=7, seed=5), size=3), 8))
    again = BatchSampler(ResumableSampler(length=7, seed=5), size=3)
    again.seek(9)
    assert list(islice(again, 5)) == batches[3:]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_order_does_not_depend_on_workers(workers):
    batches = BatchSampler(ResumableSampler(length=11, seed=4), size=2)
    loader = DataLoader(list(range(11)), batch_sampler=batches, num_workers=workers, collate_fn=list)
    drawn = [i for batch in islice(loader, 11) for i in batch]
    assert drawn == list(islice(ResumableSampler(length=11, seed=4), 22))


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="0 samples"):
        ResumableSampler(length=0)
    with pytest.raises(ValueError, match="position=-1"):
        ResumableSampler(length=2).seek(-1)
    with pytest.raises(ValueError, match="size=0"):
        BatchSampler(ResumableSampler(length=2), size=0)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_share_the_samples_of_a_step(world):
    whole = list(islice(BatchSampler(ResumableSampler(length=11, seed=4), size=5), 6))
    shares = [
        list(islice(BatchSampler(ResumableSampler(length=11, seed=4), size=5, rank=rank, world_size=world), 6))
        for rank in range(world)
    ]
    for step, batch in enumerate(whole):
        assert sorted(i for share in shares for i in share[step]) == sorted(batch)
        sizes = [len(share[step]) for share in shares]
        assert max(sizes) - min(sizes) <= 1
