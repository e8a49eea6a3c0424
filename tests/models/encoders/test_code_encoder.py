"""Discrete codes as input."""

import pytest
import torch
from encoder_helpers import PIXEL, TOWER, save_vqgan

from asvr.models.component import fingerprint_of
from asvr.models.encoders import CodeEncoder
from asvr.models.tokenizers import SemanticTokenizer

SEMANTIC = dict(type="SemanticTokenizer", depth=3, codebook_size=6, encoder=TOWER)


def pixels(side: int = 4) -> torch.Tensor:
    return torch.rand(5, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def vqgan(tmp_path) -> str:
    return save_vqgan(tmp_path / "vqgan")


def fitted(**kwargs) -> CodeEncoder:
    torch.manual_seed(0)
    encoder = CodeEncoder(tokenizer=dict(SEMANTIC), **kwargs)
    encoder.tokenizer.fit([torch.randn(32, 4, 8)], progress=False)
    return encoder


def test_features_are_the_vectors_of_the_codes(vqgan):
    encoder = CodeEncoder(tokenizer=dict(PIXEL, name=vqgan))
    features = encoder(pixels())
    codes = encoder.tokenizer.encode(pixels())
    assert len(codes.unique()) > 1 and torch.equal(features, encoder.tokenizer.codebook()[codes[..., 0]])
    assert features.shape == (5, 4, 4) == (5, encoder.num_tokens, encoder.width)
    assert encoder.source == vqgan and not encoder.apart and not any(p.requires_grad for p in encoder.parameters())


def test_depths_stand_side_by_side():
    encoder = fitted()
    features, codes = encoder(pixels(8)), encoder.tokenizer.encode(pixels(8))
    assert encoder.width == 3 * 8 and torch.equal(features.unflatten(2, (3, 8)), encoder.tokenizer.embed(codes))


def test_learned_embeddings_are_summed_over_depths_and_trained_alone():
    encoder = fitted(width=10)
    features, codes = encoder(pixels(8)), encoder.tokenizer.encode(pixels(8))
    expected = sum(encoder.tables[d].weight[codes[..., d]] for d in range(3))
    assert encoder.width == 10 and torch.equal(features, expected)
    encoder.train()
    assert not encoder.tokenizer.training
    features.sum().backward()
    assert all(table.weight.grad is not None for table in encoder.tables)
    assert {name for name, p in encoder.named_parameters() if p.requires_grad} == {
        f"tables.{d}.weight" for d in range(3)
    }


def test_tables_stand_apart_from_the_tokenizers_file(vqgan):
    encoder = CodeEncoder(tokenizer=dict(PIXEL, name=vqgan), width=6)
    assert encoder.source == vqgan and encoder.apart == {"tables.0.weight"}
    config = dict(type="CodeEncoder", tokenizer=dict(PIXEL, name=vqgan), width=6)
    assert "name" not in encoder.portable(config)["tokenizer"]


def test_the_fingerprint_has_the_tokenizers():
    """The same weights give other codes by other rules."""
    plain = CodeEncoder(tokenizer=PIXEL)
    other = CodeEncoder(tokenizer=dict(PIXEL, arch=dict(PIXEL["arch"], unit_vectors=False)))
    other.load_state_dict(plain.state_dict())
    assert fingerprint_of(plain) != fingerprint_of(other)


def test_what_is_wrong_is_refused():
    with pytest.raises(ValueError, match="give the config of an encoder, or an Encoder"):
        CodeEncoder(tokenizer=dict(type="SemanticTokenizer", depth=2, codebook_size=4))
    with pytest.raises(ValueError, match="width=0: expected at least 1"):
        CodeEncoder(tokenizer=PIXEL, width=0)
    sequence = dict(type="MultiEncoder", encoders=[TOWER, TOWER], join="sequence")
    with pytest.raises(ValueError, match="it gives 8 codes for an image on a grid of 2x2"):
        CodeEncoder(tokenizer=dict(SEMANTIC, encoder=sequence))
    with pytest.raises(ValueError, match="its weights are random"):
        CodeEncoder(tokenizer=PIXEL)(pixels())
    with pytest.raises(ValueError, match="its codebooks are empty"):
        CodeEncoder(tokenizer=SEMANTIC)(pixels(8))


def test_a_tokenizer_of_joined_encoders_is_saved_and_read(tmp_path):
    joined = dict(type="MultiEncoder", encoders=[TOWER, TOWER], join="sequence")
    torch.manual_seed(0)
    tokenizer = SemanticTokenizer(encoder=joined, depth=2, codebook_size=4)
    assert tokenizer.num_tokens == 8
    tokenizer.fit([torch.randn(32, 8, 16)], progress=False)
    folder = tokenizer.save_pretrained(tmp_path / "tokenizer")
    torch.manual_seed(0)
    again = SemanticTokenizer(encoder=joined, depth=2, codebook_size=4, name=str(folder))
    given = {"0": pixels(8)}
    assert again.encode(given).shape == (5, 8, 2) and torch.equal(again.encode(given), tokenizer.encode(given))
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="layer.join is 'sequence' in the folder, 'channel' here"):
        SemanticTokenizer(encoder=dict(joined, join="channel"), depth=2, codebook_size=4, name=str(folder))


def test_a_decoder_of_joined_features_is_refused():
    joined = dict(type="MultiEncoder", encoders=[TOWER, TOWER])
    with pytest.raises(ValueError, match="one image transform and one grid, but MultiEncoder has several"):
        SemanticTokenizer(encoder=joined, depth=2, codebook_size=4, decoder=dict(arch=dict(width=8)))
