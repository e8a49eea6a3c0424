"""The losses with which a VQGAN is trained: quantisation, perceptual and adversarial losses.

Legend: ``I`` images, ``P`` grid cells of all images, ``C`` code width. Pixels are in [-1, 1].
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asvr.base.precision import full_float32
from asvr.data.transforms import ImageTransform
from asvr.models.encoders.base import Encoder
from asvr.models.tokenizers.pixel import PixelTokenizer
from asvr.models.tokenizers.quantizer import nearest
from asvr.registry import ENCODERS


@dataclass
class Reconstruction:
    """A reconstruction: pixels (I, 3, h, w), codes_P, latents (P, C), and the two quantisation losses, unweighted.

    codebook: the squared distance whose gradient moves the codes to the encoder's output. commitment: the same
    distance; its gradient moves the encoder's output to the codes.
    """

    pixels: Tensor
    codes: Tensor
    latents: Tensor
    codebook: Tensor
    commitment: Tensor


def reconstruct(tokenizer: PixelTokenizer, pixels: Tensor, *, quantized: bool = True) -> Reconstruction:
    """Encode and decode, with a straight-through gradient through the argmin (https://arxiv.org/abs/1711.00937).

    quantized: False decodes the encoder's output without quantisation, for the start of training.
    """
    latents = tokenizer.latents(pixels)
    rows, codebook = latents.flatten(0, 1).float(), tokenizer.codebook()
    with full_float32(pixels.device), torch.no_grad():
        codes = nearest(rows, codebook.float())
    chosen = codebook[codes]
    straight = rows + (chosen - rows).detach() if quantized else rows
    return Reconstruction(
        pixels=tokenizer.generate(straight.view_as(latents)),
        codes=codes,
        latents=rows.detach(),
        codebook=F.mse_loss(chosen, rows.detach()),
        commitment=F.mse_loss(rows, chosen.detach()),
    )


class PerceptualLoss(nn.Module):
    """The mean squared distance between unit features of a frozen encoder: LPIPS without its learned weights.

    encoder: a config of any registered encoder, or an `Encoder`. Images are resized to its input size and normalised
    as it expects.
    """

    def __init__(self, encoder: Encoder | dict):
        super().__init__()
        built = encoder if isinstance(encoder, Encoder) else ENCODERS.build(encoder)
        if not isinstance(built.transform, ImageTransform):
            raise ValueError(
                f"perceptual.encoder: {type(built).__name__} does not take one image of a fixed size, which a "
                "perceptual loss needs: name one of the encoders in it"
            )
        self.encoder = built.requires_grad_(False).eval()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(built.transform, name)).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "PerceptualLoss":
        super().train(mode)
        self.encoder.eval()
        return self

    def features(self, pixels: Tensor) -> Tensor:
        pixels = F.interpolate(pixels, self.encoder.transform.size, mode="bilinear", antialias=True)
        return F.normalize(self.encoder(((pixels + 1) / 2 - self.mean) / self.std).float(), dim=-1)

    def forward(self, reconstructed: Tensor, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.features(pixels)
        return (self.features(reconstructed) - target).square().sum(-1).mean()


class PatchDiscriminator(nn.Sequential):
    """A patch discriminator: one logit for each patch, real or not (https://arxiv.org/abs/1611.07004).

    It has group norms, so that the logits of an image do not depend on the other images of the batch. Each layer halves
    the resolution.
    """

    def __init__(self, *, width: int = 32, layers: int = 2):
        blocks = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for _ in range(layers - 1):
            blocks += [
                nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
                nn.GroupNorm(8, 2 * width),
                nn.LeakyReLU(0.2),
            ]
            width *= 2
        super().__init__(*blocks, nn.Conv2d(width, 1, 3, padding=1))


def hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the discriminator's hinge loss."""
    return (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()) / 2


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Return the factor of the adversarial loss that makes its gradient norm equal the reconstruction's.

    The gradients are taken at ``last_layer``. The factor is at most 1e4 (https://arxiv.org/abs/2012.09841, equation 7).
    """
    (a,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (b,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (a.norm() / (b.norm() + 1e-4)).clamp(max=1e4).detach()


class Adversary(nn.Module):
    """A patch discriminator with its optimiser.

    weight: weight of the adversarial loss. start: the training step from which it is used. adaptive: whether it is
    multiplied by `adaptive_weight`. width, layers: sizes of the discriminator. lr: learning rate of its Adam optimiser.
    """

    def __init__(
        self,
        *,
        weight: float = 0.1,
        start: int = 0,
        adaptive: bool = False,
        width: int = 32,
        layers: int = 2,
        lr: float = 2e-4,
    ):
        super().__init__()
        self.weight, self.start, self.adaptive = weight, start, adaptive
        self.discriminator = PatchDiscriminator(width=width, layers=layers)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=lr, betas=(0.5, 0.9))

    def loss(self, fake: Tensor, reconstruction: Tensor, last_layer: Tensor) -> Tensor:
        """Return the weighted adversarial loss of the VQGAN: it is low if ``fake`` images are taken for real ones.

        reconstruction: the rest of the VQGAN's loss. last_layer: weights of its last layer. Both are for ``adaptive``.
        """
        loss = -self.discriminator(fake).mean()
        factor = adaptive_weight(reconstruction, loss, last_layer) if self.adaptive else 1.0
        return self.weight * factor * loss

    def step(self, real: Tensor, fake: Tensor) -> Tensor:
        """Run one training step of the discriminator, and return its loss."""
        loss = hinge_loss(self.discriminator(real), self.discriminator(fake.detach()))
        self.optimizer.zero_grad()  # also drops the gradients that came from the VQGAN's loss
        loss.backward()
        self.optimizer.step()
        return loss.detach()
