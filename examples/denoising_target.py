"""A denoising target over the latents of whole images.

A small network gets noisy latents and the hidden states of an image, and predicts the noise. The path from latents to
noise is linear, as in rectified flow. Here the latents are the image itself in few pixels. Those of a VAE are made in
`truth` in the same way.
"""

import torch
import torch.nn.functional as F
from torch import nn

from asvr.data.transforms import ImageTransform
from asvr.models.targets import Target, TensorSpec
from asvr.registry import TARGETS


class Denoiser(nn.Module):
    def __init__(self, hidden_size: int, channels: int, width: int):
        super().__init__()
        self.condition = nn.Linear(hidden_size, width)
        self.latents = nn.Conv2d(channels + 1, width, 3, padding=1)
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, noisy, time_I, hidden_IH):
        times = time_I.view(-1, 1, 1, 1).expand(-1, 1, *noisy.shape[2:])
        condition = self.condition(hidden_IH)[:, :, None, None]
        return self.out(F.gelu(self.latents(torch.cat([noisy, times], 1)) + condition))


@TARGETS.register_module()
class DenoisedLatents(Target):
    """Predicts the noise in the latents. size: rows and columns of the latents. width: the width of the network."""

    def __init__(self, *, encoder, llm, size: int = 8, width: int = 32, **own):
        super().__init__(encoder=encoder, llm=llm, **own)
        self.size = size
        self.head = Denoiser(llm.hidden_size, 3, width)

    def views(self):
        return {self.name: ImageTransform(size=(self.size, self.size))}

    def truth_spec(self):
        return dict(latents=TensorSpec((3, self.size, self.size), torch.float32))

    def truth(self, pixels, features_INE):
        return dict(latents=pixels[self.name])

    def count(self, window, *, training):  # the loss is one number for an image, not for each token
        return sum(batch.num_images_with_tokens for batch in window)

    def loss(self, seen, truth):
        latents = truth["latents"]
        noise = torch.randn_like(latents)
        time_I = torch.rand(len(latents), device=latents.device)
        share = time_I.view(-1, 1, 1, 1)
        predicted = self.head((1 - share) * latents + share * noise, time_I, seen.means(-1))
        loss_I = F.mse_loss(predicted, noise - latents, reduction="none").mean((1, 2, 3))
        return (loss_I * seen.has_tokens_I).sum(), {}
