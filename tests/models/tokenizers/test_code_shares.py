"""The most probable codes and their shares, against the definition, and of each tokenizer."""

import pytest
import torch

from asvr.models.tokenizers import PixelTokenizer, ResidualQuantizer, SemanticTokenizer
from asvr.models.tokenizers.quantizer import soft_codes
from asvr.registry import ENCODERS


def quantizer(depth=3, size=9, width=4):
    torch.manual_seed(0)
    own = ResidualQuantizer(depth=depth, codebook_size=size, width=width)
    for level, book in enumerate(own.codebooks):
        book.weight.copy_(torch.randn(size, width) / 2**level)
        book.share.fill_(1 / size)
    return own


@pytest.mark.parametrize("top", [1, 4, 9])
def test_shares_are_softmax_over_distances_at_each_depth(top):
    """Vector by vector: softmax(-|r - e|^2 / T) over the whole codebook, the largest kept, made to sum to 1."""
    own, x_PC = quantizer(), torch.randn(7, 4)
    codes_PD, ids_PDK, shares_PDK = own.encode_soft(x_PC, temperature=0.7, top=top)
    assert torch.equal(codes_PD, own.encode(x_PC)) and ids_PDK.shape == shares_PDK.shape == (7, 3, top)
    for p, x in enumerate(x_PC.double()):
        for d, book in enumerate(own.codebooks):
            weight_VC = book.weight.double()
            probabilities_V = torch.softmax(-(x - weight_VC).square().sum(-1) / 0.7, -1)
            kept = probabilities_V.sort(descending=True)
            assert torch.equal(ids_PDK[p, d], kept.indices[:top])
            expected = kept.values[:top] / kept.values[:top].sum()
            torch.testing.assert_close(shares_PDK[p, d].double(), expected, rtol=1e-5, atol=1e-6)
            x = x - weight_VC[codes_PD[p, d]]


def test_chunks_and_shapes_change_nothing():
    own, x = quantizer(), torch.randn(5, 6, 4)
    whole = own.encode_soft(x, temperature=0.5, top=3)
    own.memory = 2 * 4 * 9
    for a, b in zip(whole, own.encode_soft(x, temperature=0.5, top=3), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_small_temperature_leaves_the_nearest_alone_and_a_tie_its_own_code_first():
    own = quantizer()
    _, _, shares_PDK = own.encode_soft(torch.randn(7, 4), temperature=1e-6, top=3)
    assert torch.equal(shares_PDK[..., 0], torch.ones(7, 3))
    book_VC = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    ids, shares = soft_codes(torch.zeros(1, 2), torch.tensor([2]), book_VC, temperature=1.0, top=2)
    assert ids.tolist() == [[2, 0]] and shares.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("kind", ["residual", "product"])
def test_a_semantic_tokenizer_softens_what_its_encoder_gives(kind):
    encoder = ENCODERS.build(dict(type="TinyPatchEncoder"))
    own = SemanticTokenizer(encoder=encoder, depth=2, codebook_size=6, quantizer=kind)
    pixels, options = torch.randn(16, 3, 16, 16), dict(temperature=0.5, top=2)
    with pytest.raises(ValueError, match="its codebooks are empty"):
        own.encode_soft(pixels, **options)
    own.fit([own.features(pixels)], progress=False)
    found = own.encode_soft(pixels, **options)
    assert own.softens and torch.equal(found[0], own.encode(pixels)) and torch.equal(found[1][..., 0], found[0])
    assert all(
        torch.equal(a, b) for a, b in zip(found, own.quantize_soft(own.features(pixels), **options), strict=True)
    )


@pytest.mark.parametrize("arch", [dict(), dict(unit_vectors=False, depth=2)])
def test_a_pixel_tokenizer_softens_what_its_network_gives(arch):
    sizes = dict(embed_dim=4, num_embeddings=7, latent_channels=8, base_channels=32, channel_multiplier=[1, 1])
    own = PixelTokenizer(image_size=4, arch=dict(sizes, num_res_blocks=1, **arch)).eval()
    pixels = torch.randn(3, 3, 4, 4)
    with pytest.raises(ValueError, match="its weights are random"):
        own.encode_soft(pixels, temperature=0.5, top=2)
    own.trained.fill_(True)
    codes_IND, ids_INDK, shares_INDK = own.encode_soft(pixels, temperature=0.5, top=2)
    assert torch.equal(codes_IND, own.encode(pixels)) and torch.equal(ids_INDK[..., 0], codes_IND)
    with torch.no_grad():
        z, book = own.latents(pixels).double(), own.codebook().double()
    probabilities = torch.softmax(-(z[..., None, :] - book).square().sum(-1) / 0.5, -1).sort(descending=True)
    expected = probabilities.values[..., :2] / probabilities.values[..., :2].sum(-1, keepdim=True)
    torch.testing.assert_close(shares_INDK[:, :, 0].double(), expected, rtol=1e-4, atol=1e-5)
