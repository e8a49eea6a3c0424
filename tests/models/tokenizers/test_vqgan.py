import pytest
import torch

from asvr.models.tokenizers.pixel import PixelTokenizer
from asvr.models.tokenizers.vqgan import (
    Adversary,
    PatchDiscriminator,
    PerceptualLoss,
    adaptive_weight,
    hinge_loss,
    reconstruct,
)

ARCH = dict(
    base_channels=32, channel_multiplier=[1, 1], num_res_blocks=0, latent_channels=32, num_embeddings=16, embed_dim=4
)


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return PixelTokenizer(image_size=16, arch=ARCH)


@pytest.fixture
def pixels():
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def norm(parameters):
    return sum(p.grad.abs().sum().item() for p in parameters if p.grad is not None)


def test_reconstruction_is_what_encode_and_decode_give(tokenizer, pixels):
    tokenizer.trained.fill_(True)
    result = reconstruct(tokenizer, pixels)
    codes = tokenizer.encode(pixels)
    assert torch.equal(result.codes, codes.flatten())
    assert torch.allclose(result.pixels.detach().clamp(-1, 1), tokenizer.decode(codes), atol=1e-5)


def test_without_quantisation_the_encoder_is_decoded_directly(tokenizer, pixels):
    plain = reconstruct(tokenizer, pixels, quantized=False).pixels
    assert torch.allclose(plain, tokenizer.generate(tokenizer.latents(pixels)), atol=1e-4)
    assert not torch.allclose(plain, reconstruct(tokenizer, pixels).pixels)


def test_each_loss_reaches_its_part(tokenizer, pixels):
    model = tokenizer.model
    expected = {
        "pixels": (True, False, True),
        "codebook": (False, True, False),
        "commitment": (True, False, False),
    }
    for name, reached in expected.items():
        tokenizer.zero_grad()
        getattr(reconstruct(tokenizer, pixels), name).square().mean().backward()
        parts = (model.encoder, model.quantize, model.decoder)
        assert tuple(norm(part.parameters()) > 0 for part in parts) == reached, name


def test_perceptual_loss_is_zero_for_the_same_picture_and_has_a_gradient(tokenizer, pixels):
    loss = PerceptualLoss(dict(type="TinyPatchEncoder", side=8)).train()
    assert loss(pixels, pixels).item() < 1e-8
    value = loss(reconstruct(tokenizer, pixels).pixels, pixels)
    value.backward()
    assert value > 0 and norm(tokenizer.model.encoder.parameters()) > 0
    assert norm(loss.encoder.parameters()) == 0 and not loss.encoder.training


def test_adversary_pushes_the_vqgan_and_learns(tokenizer, pixels):
    torch.manual_seed(0)
    adversary = Adversary(weight=0.5, lr=2e-3)
    result = reconstruct(tokenizer, pixels)
    adversary.loss(result.pixels, None, None).backward()
    assert norm(tokenizer.model.encoder.parameters()) > 0
    first = adversary.step(pixels, result.pixels)
    for _ in range(20):
        last = adversary.step(pixels, result.pixels)
    assert last < 0.5 * first


def test_adaptive_weight_balances_the_gradients(tokenizer, pixels):
    discriminator = PatchDiscriminator()
    fake = reconstruct(tokenizer, pixels).pixels
    error, adversarial = (fake - pixels).square().mean(), -discriminator(fake).mean()
    weight = tokenizer.model.decoder.conv_out.weight
    factor = adaptive_weight(error, adversarial, weight)
    (a,) = torch.autograd.grad(error, weight, retain_graph=True)
    (b,) = torch.autograd.grad(adversarial, weight, retain_graph=True)
    assert torch.allclose(a.norm(), factor * b.norm(), rtol=0.05)


def test_hinge_loss_is_zero_beyond_the_margin():
    real, fake = torch.full((2, 1, 3, 3), 1.5), torch.full((2, 1, 3, 3), -1.5)
    assert hinge_loss(real, fake) == 0
    assert hinge_loss(fake, real) == 2.5


def test_logits_of_a_picture_do_not_depend_on_the_others(pixels):
    discriminator = PatchDiscriminator()
    assert torch.allclose(discriminator(pixels)[:1], discriminator(pixels[:1]), atol=1e-5)
