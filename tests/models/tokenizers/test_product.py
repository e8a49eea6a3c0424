"""Product codes, one a group of channels, against a loop over groups."""

import json

import pytest
import torch

from asvr.models.tokenizers.product import ProductQuantizer
from asvr.models.tokenizers.quantizer import ResidualQuantizer
from asvr.models.tokenizers.semantic import DESCRIPTION, SemanticTokenizer
from asvr.registry import ENCODERS

WIDTH, DEPTH, SIZES = 8, 4, [5, 7, 6, 5]


def vectors(count=600, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, WIDTH, generator=generator)[torch.randint(8, (count,), generator=generator)] + 0.3 * (
        torch.randn(count, WIDTH, generator=generator)
    )


def fitted(depth=DEPTH, size=SIZES):
    quantizer = ProductQuantizer(depth=depth, codebook_size=size, width=WIDTH)
    quantizer.kmeans(vectors(), iterations=8, generator=torch.Generator().manual_seed(0))
    return quantizer


def tokenizer(**kwargs):
    encoder = ENCODERS.build(dict(type="TinyPatchEncoder", width=WIDTH))
    return SemanticTokenizer(encoder=encoder, **dict(dict(depth=2, codebook_size=6, quantizer="product"), **kwargs))


def test_codes_are_the_nearest_of_each_group():
    quantizer, x_PC = fitted(), vectors(40, seed=1)
    codes_PD = quantizer.encode(x_PC.unflatten(0, (5, 8)))
    assert codes_PD.shape == (5, 8, DEPTH)
    for x, codes in zip(x_PC, codes_PD.flatten(0, 1), strict=True):
        for group, code, book in zip(x.split(WIDTH // DEPTH), codes, quantizer.codebooks, strict=True):
            assert code == (group - book.weight).square().sum(-1).argmin()
        chosen = [book.weight[code] for code, book in zip(codes, quantizer.codebooks, strict=True)]
        assert torch.equal(quantizer.decode(codes[None])[0], torch.cat(chosen))


def test_a_code_vector_is_zero_outside_its_group():
    quantizer = fitted()
    vectors_DC = quantizer.embed(torch.tensor([1, 2, 3, 4]))
    assert vectors_DC.shape == (DEPTH, WIDTH)
    for level, vector in enumerate(vectors_DC):
        own = slice(2 * level, 2 * level + 2)
        assert torch.equal(vector[own], quantizer.codebooks[level].weight[level + 1])
        assert vector.count_nonzero() == vector[own].count_nonzero() == 2


def test_one_group_is_one_level_of_residual_codes():
    own, other = fitted(1, 9), ResidualQuantizer(depth=1, codebook_size=9, width=WIDTH)
    other.kmeans(vectors(), iterations=8, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(own.buffers(), other.buffers(), strict=True))
    for a, b in zip(own.encode_soft(vectors(), **SOFT), other.encode_soft(vectors(), **SOFT), strict=True):
        assert torch.equal(a, b)
    assert own.statistics(vectors()) == other.statistics(vectors())


SOFT = dict(temperature=0.5, top=3)


def test_each_group_adds_to_what_is_described_and_more_batches_move_the_codes():
    quantizer = fitted()
    errors = quantizer.statistics(vectors())["relative_error"]
    assert sorted(errors, reverse=True) == errors and errors[-1] < 0.2
    rest = vectors() - quantizer.decode(quantizer.encode(vectors()))
    spread = (vectors() - vectors().mean(0)).square().sum()
    assert errors[-1] == pytest.approx((rest.square().sum() / spread).item(), rel=1e-5)
    before = [book.weight.clone() for book in quantizer.codebooks]
    quantizer.update(2 * vectors(seed=2), generator=torch.Generator().manual_seed(0))
    assert all((book.weight != old).any() for book, old in zip(quantizer.codebooks, before, strict=True))


def test_it_is_fitted_saved_and_read_as_a_semantic_tokenizer(tmp_path):
    own = tokenizer()
    assert not own.fitted
    pixels = torch.randn(32, 3, 16, 16)
    own.fit([own.features(pixels)], progress=False)
    assert own.code_width == WIDTH and own.codebook_sizes == [6, 6]
    folder = own.save_pretrained(tmp_path / "product")
    again = tokenizer(name=str(folder))
    assert torch.equal(again.encode(pixels), own.encode(pixels)) and again.fingerprint() == own.fingerprint()
    with pytest.raises(ValueError, match=r"quantizer is 'product' in the folder, 'residual' here"):
        tokenizer(name=str(folder), quantizer="residual")


def test_a_folder_of_an_earlier_version_holds_residual_codes(tmp_path):
    own = tokenizer(quantizer="residual")
    own.fit([own.features(torch.randn(32, 3, 16, 16))], progress=False)
    folder = own.save_pretrained(tmp_path / "earlier")
    description = json.loads((folder / DESCRIPTION).read_text())
    assert description.pop("quantizer") == "residual"
    (folder / DESCRIPTION).write_text(json.dumps(description))
    assert tokenizer(quantizer="residual", name=str(folder)).fingerprint() == own.fingerprint()
    with pytest.raises(ValueError, match=r"quantizer is 'residual' in the folder, 'product' here"):
        tokenizer(name=str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(depth=3), r"depth=3: expected a divisor of the number of channels, 8"),
        (dict(shared=True), r"shared=True.*set shared=False"),
        (dict(quantizer="lattice"), r"quantizer='lattice': expected one of residual, product"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        tokenizer(**change)
