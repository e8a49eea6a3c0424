"""Train a VAE. A model can then reconstruct its latents.

Legend: ``I`` images.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from asvr.base.plots import optional
from asvr.models.encoders.latents import LatentEncoder
from asvr.tokenizer_training.loop import Batches, prepare, run_steps, split, warmed_cosine
from asvr.tokenizer_training.report import draw_reconstructions


def train_latent_encoder(
    tokenizer: LatentEncoder,
    dataset,
    *,
    work_dir: str | Path,
    steps: int,
    batch_size: int = 16,
    lr: float = 1e-3,
    warmup_ratio: float = 0.03,
    l1_weight: float = 1.0,
    l2_weight: float = 1.0,
    kl_weight: float = 1e-4,
    held_out: int = 64,
    num_workers: int = 0,
    image_aspect: str = "square",
    log_interval: int = 20,
    device: str = "auto",
    seed: int = 0,
) -> dict:
    """Train a VAE on the images of a data set (its ``images()``).

    The loss is the L1 and squared error of an image that is decoded from a sample of the posterior, and the KL
    divergence of the posterior from a normal distribution, in nats per latent. held_out: the number of images that are
    only used to measure. The optimiser is AdamW with a linear warm-up and a cosine to zero. At the end shift and scale
    are set in the configuration, so that latents of the held-out images have mean 0 and variance 1. Writes
    ``metrics.jsonl`` and ``summary.png`` (held-out images above their reconstructions) to ``work_dir``. Returns the
    report, measured on the held-out images.
    """
    work_dir, device = prepare(work_dir, device)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    test, train = split(dataset, tokenizer.transform, image_aspect, held_out, generator)
    batch_size = min(batch_size, len(train))
    loader = Batches(train, batch_size, num_workers=num_workers, generator=generator)
    vae = tokenizer.to(device).train().model
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = warmed_cosine(optimizer, steps, warmup_ratio)
    weights = dict(l1=l1_weight, l2=l2_weight, kl=kl_weight)

    def train_step(step: int, pixels: Tensor) -> dict[str, Tensor]:
        pixels = pixels.to(device)
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        parts = dict(l1=F.l1_loss(decoded, pixels), l2=F.mse_loss(decoded, pixels))
        parts["kl"] = posterior.kl().sum() / posterior.mean.numel()
        loss = sum(weights[name] * part for name, part in parts.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return {name: part.detach() for name, part in dict(loss=loss, **parts).items()}

    rows, seconds = run_steps(train_step, loader, steps=steps, name="VAE", work_dir=work_dir, every=log_interval)
    tokenizer.eval()
    tokenizer.source = None
    report, pair = _finish(tokenizer, [pixels.to(device) for pixels in Batches(test, batch_size)])
    with optional(work_dir / "summary.png"):
        draw_reconstructions(*pair, rows, work_dir / "summary.png")
    return dict(report, pictures=len(train), held_out=held_out, steps=steps, seconds=seconds)


@torch.no_grad()
def _finish(tokenizer: LatentEncoder, batches: list[Tensor]) -> tuple[dict, tuple[Tensor, Tensor]]:
    """Set shift and scale from these pixels, and measure on them. Also returns the first batch with its
    reconstructions.

    psnr: in dB, of all pixels together. relative_error: squared error divided by the variance of the pixels.
    """
    none = dict(shift_factor=None, latents_mean=None, latents_std=None)  # one shift and scale for all channels
    tokenizer.model.register_to_config(scaling_factor=1.0, **none)
    plain = torch.cat([tokenizer(pixels) for pixels in batches])
    shift, scale = plain.mean().item(), 1 / max(plain.std(correction=0).item(), 1e-12)
    tokenizer.model.register_to_config(shift_factor=shift, scaling_factor=scale)
    pairs = [(pixels.cpu(), tokenizer.decode(tokenizer(pixels)).cpu()) for pixels in batches]
    original, decoded = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    error = F.mse_loss(decoded, original).item()
    relative = error / max(original.var(correction=0).item(), 1e-12)
    psnr = 10 * math.log10(4 / max(error, 1e-12))  # pixels span 2
    return dict(psnr=psnr, relative_error=relative, shift_factor=shift, scaling_factor=scale), pairs[0]
