import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from asvr.models.tokenizers.quantizer import ResidualQuantizer, nearest


def make(*, depth=3, size=8, width=4, seed=0, **kwargs):
    quantizer = ResidualQuantizer(depth=depth, codebook_size=size, width=width, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    for book in quantizer.codebooks:
        book.weight.normal_(generator=generator)
        book.share.fill_(1 / len(book.share))
    return quantizer


def blobs(count=2000, centres=20, width=6, noise=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(centres, width, generator=generator) * 3
    which = torch.randint(centres, (count,), generator=generator)
    return means[which] + noise * torch.randn(count, width, generator=generator)


def fitted(x, *, seed=0, **kwargs):
    quantizer = ResidualQuantizer(width=x.shape[-1], **kwargs)
    quantizer.kmeans(x, iterations=8, generator=torch.Generator().manual_seed(seed))
    return quantizer


# Small whole numbers: float32 arithmetic on them is exact, so equality does not depend on how a product is blocked.
def full_tensor(rows, width):
    return hnp.arrays(np.float32, (rows, width), elements=st.integers(-8, 8).map(float)).map(torch.from_numpy)


@settings(max_examples=50, deadline=None)
@given(full_tensor(17, 3), full_tensor(10, 3))
def test_chunked_search_equals_unchunked_and_takes_the_lowest_index(x_PC, book_VC):
    brute_P = torch.cdist(x_PC.double(), book_VC.double()).square().round().argmin(-1)
    assert torch.equal(nearest(x_PC, book_VC), brute_P)
    assert torch.equal(nearest(x_PC, book_VC, memory=3 * 4 * 10), brute_P)


@settings(max_examples=30, deadline=None)
@given(full_tensor(5, 4), st.integers(0, 1000), st.booleans())
def test_codes_equal_a_straight_line_greedy_loop(x_PC, seed, shared):
    quantizer = make(seed=seed, shared=shared)
    codes_PD = quantizer.encode(x_PC)
    for x, codes in zip(x_PC, codes_PD, strict=True):
        residual = x.double()
        for level, code in enumerate(codes.tolist()):
            weight_VC = quantizer.book(level).weight.double()
            distances_V = (residual - weight_VC).square().sum(-1)
            assert distances_V[code] <= distances_V.min() + 1e-4
            residual = residual - weight_VC[code]
        assert torch.allclose(quantizer.decode(codes).double(), x.double() - residual, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(full_tensor(6, 4), st.permutations(range(6)))
def test_rows_are_independent(x_PC, order):
    quantizer = make()
    assert torch.equal(quantizer.encode(x_PC)[order], quantizer.encode(x_PC[order]))


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float32, (7, 4), elements=st.floats(-1e4, 1e4, width=16)).map(torch.from_numpy))
def test_codes_are_in_range_and_bfloat16_input_equals_its_upcast(x_PC):
    quantizer = make(size=[5, 9, 2])
    low = x_PC.bfloat16()
    codes_PD = quantizer.encode(low)
    assert codes_PD.dtype == torch.int64 and codes_PD.min() >= 0
    assert (codes_PD < torch.tensor([5, 9, 2])).all()
    assert torch.equal(codes_PD, quantizer.encode(low.float()))


def test_autocast_does_not_change_codes():
    x = blobs(width=4)
    quantizer = make()
    with torch.autocast("cpu", torch.bfloat16):
        inside = quantizer.encode(x)
    assert torch.equal(inside, quantizer.encode(x))


def test_matmul_precision_is_put_back():
    torch.set_float32_matmul_precision("medium")
    try:
        make().encode(torch.zeros(1, 4))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_first_level_code_vectors_encode_to_themselves():
    quantizer = make(depth=1)
    codes = torch.arange(8)[:, None]
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)


def test_shapes():
    quantizer = make()
    codes = quantizer.encode(torch.randn(2, 5, 4))
    assert codes.shape == (2, 5, 3)
    assert quantizer.embed(codes).shape == (2, 5, 3, 4)
    assert quantizer.decode(codes[..., :2]).shape == (2, 5, 4)
    with pytest.raises(ValueError, match="width 3"):
        quantizer.encode(torch.randn(2, 3))


@pytest.mark.parametrize("shared", [False, True])
def test_kmeans_lowers_the_error_level_by_level(shared):
    x = blobs()
    stats = fitted(x, depth=3, codebook_size=24, shared=shared).statistics(x)
    errors = stats["relative_error"]
    assert errors[0] < 0.35 and errors == sorted(errors, reverse=True) and errors[-1] < 0.5 * errors[0]
    assert all(1 <= p <= 24 for p in stats["perplexity"])
    random_rows = ResidualQuantizer(depth=1, codebook_size=24, width=6)
    random_rows.kmeans(x, iterations=0, generator=torch.Generator().manual_seed(0))
    more = fitted(x, depth=1, codebook_size=24).statistics(x)["relative_error"][0]
    assert more < random_rows.statistics(x)["relative_error"][0]


def test_kmeans_finds_every_different_row_among_repeats():
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    x = torch.cat([rows[:1].expand(500, 4), rows])
    quantizer = fitted(x, depth=1, codebook_size=6)
    assert quantizer.statistics(x)["relative_error"][0] < 1e-6


def test_fewer_vectors_than_codes():
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    quantizer = fitted(x, depth=2, codebook_size=8)
    assert quantizer.fitted
    assert quantizer.statistics(x)["relative_error"][0] < 1e-6


def test_ema_follows_the_data_and_restarts_dead_codes():
    x = blobs()
    moved = blobs(seed=1)
    quantizer = fitted(x, depth=2, codebook_size=16, decay=0.8)
    before = quantizer.statistics(moved)
    generator = torch.Generator().manual_seed(0)
    restarted = sum(quantizer.update(moved, generator=generator) for _ in range(40))
    after = quantizer.statistics(moved)
    assert restarted > 0
    assert after["relative_error"][-1] < 0.7 * before["relative_error"][-1]
    assert after["usage"][0] > before["usage"][0]


def test_ema_step_is_the_weighted_mean():
    quantizer = make(depth=1, size=2, width=1, decay=0.5)
    quantizer.codebooks[0].weight.copy_(torch.tensor([[0.0], [10.0]]))
    quantizer.update(torch.tensor([[1.0], [3.0], [9.0], [9.0]]), generator=torch.Generator())
    assert torch.allclose(quantizer.codebooks[0].weight, torch.tensor([[1.0], [9.5]]))
    assert torch.allclose(quantizer.codebooks[0].share, torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("shared", [False, True])
def test_same_seed_same_codebooks(shared):
    def run(seed):
        quantizer = fitted(blobs(), seed=seed, depth=2, codebook_size=8, shared=shared)
        generator = torch.Generator().manual_seed(seed)
        for i in range(3):
            quantizer.update(blobs(seed=i), generator=generator)
        return quantizer.state_dict()

    first, again, other = run(1), run(1), run(2)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_state_dict_carries_everything():
    x = blobs()
    quantizer = fitted(x, depth=2, codebook_size=[8, 4])
    other = ResidualQuantizer(depth=2, codebook_size=[8, 4], width=6)
    assert not other.fitted
    other.load_state_dict(quantizer.state_dict())
    assert other.fitted and torch.equal(other.encode(x), quantizer.encode(x))
    for q in (quantizer, other):
        q.update(x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(other.encode(x), quantizer.encode(x))


def test_shared_codebook_is_one_tensor():
    assert len(ResidualQuantizer(depth=4, codebook_size=8, width=2, shared=True).state_dict()) == 2


@pytest.mark.parametrize(
    "fields",
    [
        dict(depth=0, codebook_size=4),
        dict(depth=2, codebook_size=[4]),
        dict(depth=1, codebook_size=0),
        dict(depth=2, codebook_size=[4, 8], shared=True),
        dict(depth=4, codebook_size=2, shared=True),
    ],
)
def test_wrong_sizes_are_refused(fields):
    with pytest.raises(ValueError, match="codebook_size"):
        ResidualQuantizer(width=2, **fields)


def test_on_meta_device():
    with torch.device("meta"):
        quantizer = ResidualQuantizer(depth=8, codebook_size=16384, width=1152)
    assert not quantizer.fitted
