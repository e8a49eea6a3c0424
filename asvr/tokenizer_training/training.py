"""Make a visual tokenizer from images: fit a semantic one, or train a pixel one.

Legend: ``I`` images, ``P`` grid cells of all images, ``V`` codes in a codebook, ``C`` code width.
"""

import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from asvr.base.plots import optional
from asvr.data.transforms import Pixels, move
from asvr.models.tokenizers.pixel import PixelTokenizer
from asvr.models.tokenizers.quantizer import code_usage
from asvr.models.tokenizers.semantic import SemanticTokenizer
from asvr.models.tokenizers.vqgan import Adversary, PerceptualLoss, reconstruct
from asvr.tokenizer_training.loop import (
    METRICS,
    Batches,
    Images,
    prepare,
    run_steps,
    shuffled,
    split,
    warmed_cosine,
)
from asvr.tokenizer_training.report import draw_levels, draw_reconstructions

RESTART_INTERVAL = 50  # a code of the VQGAN that is not used for so many steps is replaced


def fit_semantic_tokenizer(
    tokenizer: SemanticTokenizer,
    dataset,
    *,
    work_dir: str | Path,
    batch_size: int = 64,
    num_workers: int = 0,
    image_aspect: str = "square",
    device: str = "auto",
    seed: int = 0,
    vectors_per_code: int = 64,
    iterations: int = 10,
) -> dict:
    """Fit the codebooks on the features of a data set's images (its ``images()``). Each is seen once, in random order.

    Writes ``metrics.jsonl`` (one line for each level) and ``summary.png`` to ``work_dir``. Returns the report. For the
    last two arguments see `SemanticTokenizer.fit`.
    """
    work_dir, device = prepare(work_dir, device)
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    sources = shuffled(dataset, generator)
    images = Images(sources, tokenizer.transform, image_aspect, dataset.on_error)
    loader = Batches(images, batch_size, num_workers=num_workers)
    tokenizer.to(device).eval()
    tokenizer.encoder.to(device).eval()
    features = (_features(tokenizer, move(pixels, device)) for pixels in tqdm(loader, desc="features", unit="batch"))
    levels = tokenizer.fit(features, vectors_per_code=vectors_per_code, iterations=iterations, seed=seed)
    with (work_dir / METRICS).open("w", encoding="utf-8") as file:
        for i in range(tokenizer.depth):
            file.write(json.dumps(dict(level=i, **{key: levels[key][i] for key in levels})) + "\n")
    with optional(work_dir / "summary.png"):
        draw_levels(levels, work_dir / "summary.png")
    return dict(levels, pictures=len(sources), seconds=time.perf_counter() - started)


def _features(tokenizer: SemanticTokenizer, pixels: Pixels) -> Tensor:
    """The features (..., E) of the cells that images fill. An encoder for images in their own resolution has empty
    cells."""
    features_INE, there = tokenizer.features(pixels), getattr(tokenizer.encoder, "there", None)
    return features_INE if there is None else features_INE[there(pixels)]


def train_pixel_tokenizer(
    tokenizer: PixelTokenizer,
    dataset,
    *,
    work_dir: str | Path,
    steps: int,
    batch_size: int = 32,
    lr: float = 1e-3,
    warmup_ratio: float = 0.03,
    plain_ratio: float = 0.2,
    l1_weight: float = 1.0,
    l2_weight: float = 1.0,
    codebook_weight: float = 1.0,
    commitment_weight: float = 0.25,
    perceptual: dict | None = None,
    adversarial: dict | None = None,
    held_out: int = 64,
    num_workers: int = 0,
    image_aspect: str = "square",
    log_interval: int = 20,
    device: str = "auto",
    seed: int = 0,
) -> dict:
    """Train a VQGAN on the images of a data set (its ``images()``), with L1 and squared error.

    perceptual: ``dict(encoder=..., weight=...)``, see `PerceptualLoss`. adversarial: arguments of `Adversary`.
    held_out: the number of images that are only used to measure. The optimiser is AdamW with a linear warm-up and a
    cosine to zero. plain_ratio: the share of steps that train the autoencoder without quantisation; the codes then
    start at outputs of the encoder. Writes ``metrics.jsonl`` and ``summary.png`` (held-out images above their
    reconstructions) to ``work_dir``. Returns the report, measured on the held-out images.
    """
    if tokenizer.depth > 1:
        raise ValueError(f"tokenizer.arch.depth={tokenizer.depth}: residual codes of pixels are imported, not trained")
    work_dir, device = prepare(work_dir, device)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    test, train = split(dataset, tokenizer.transform, image_aspect, held_out, generator)
    batch_size = min(batch_size, len(train))
    loader = Batches(train, batch_size, num_workers=num_workers, generator=generator)
    tokenizer.to(device).train()
    trainer = _Trainer(tokenizer, steps, lr, warmup_ratio, plain_ratio, perceptual, adversarial, generator)
    weights = dict(l1=l1_weight, l2=l2_weight, codebook=codebook_weight, commitment=commitment_weight)

    def train_step(step: int, pixels: Tensor) -> dict[str, Tensor]:
        return trainer.step(step, pixels.to(device), weights)

    rows, seconds = run_steps(train_step, loader, steps=steps, name="VQGAN", work_dir=work_dir, every=log_interval)
    tokenizer.trained.fill_(True)
    tokenizer.eval()
    tokenizer.source = None
    report, picture = evaluate_pixel_tokenizer(tokenizer, Batches(test, batch_size))
    with optional(work_dir / "summary.png"):
        draw_reconstructions(*picture, rows, work_dir / "summary.png")
    return dict(report, pictures=len(train), held_out=held_out, steps=steps, seconds=seconds)


def evaluate_pixel_tokenizer(tokenizer: PixelTokenizer, loader) -> tuple[dict, tuple[Tensor, Tensor]]:
    """Measure on batches of pixels. Also returns the first batch with its reconstruction.

    psnr: in dB, of all pixels together. relative_error: squared error divided by the variance of the pixels. usage,
    perplexity: of the codebook, see `ResidualQuantizer.statistics`.
    """
    device = tokenizer.trained.device
    batches = [(pixels, tokenizer.encode(pixels.to(device))) for pixels in loader]
    pairs = [(pixels, tokenizer.decode(codes).cpu()) for pixels, codes in batches]
    original, decoded = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    error = F.mse_loss(decoded, original).item()
    usage, perplexity = code_usage(torch.cat([codes for _, codes in batches]), tokenizer.codebook_sizes[0])
    report = dict(
        psnr=10 * math.log10(4 / max(error, 1e-12)),  # pixels span 2
        relative_error=[error / max(original.var(correction=0).item(), 1e-12)],
        usage=[usage],
        perplexity=[perplexity],
    )
    return report, pairs[0]


class _Trainer:
    """The modules and optimisers of a VQGAN's training, and one step of it."""

    def __init__(self, tokenizer, steps, lr, warmup_ratio, plain_ratio, perceptual, adversarial, generator):
        device = tokenizer.trained.device
        self.tokenizer, self.generator = tokenizer, generator
        self.first_quantized, self.last_restart = round(plain_ratio * steps), 0.8 * steps
        self.optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
        self.schedule = warmed_cosine(self.optimizer, steps, warmup_ratio)
        self.perceptual_weight = (perceptual or {}).get("weight", 1.0)
        self.perceptual = PerceptualLoss(perceptual["encoder"]).to(device) if perceptual else None
        self.adversary = Adversary(**adversarial).to(device) if adversarial else None
        self.used_V = torch.zeros(tokenizer.codebook_sizes[0], dtype=torch.bool, device=device)

    def step(self, step: int, pixels: Tensor, weights: dict[str, float]) -> dict[str, Tensor]:
        quantized_steps = step - self.first_quantized
        quantized = quantized_steps >= 0
        if quantized and quantized_steps % RESTART_INTERVAL == 0 and step <= self.last_restart:
            self._restart_unused(pixels)
        result = reconstruct(self.tokenizer, pixels, quantized=quantized)
        parts = dict(l1=F.l1_loss(result.pixels, pixels), l2=F.mse_loss(result.pixels, pixels))
        if quantized:
            self.used_V[result.codes] = True
            parts |= dict(codebook=result.codebook, commitment=result.commitment)
        loss = sum(weights[name] * part for name, part in parts.items())
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual(result.pixels, pixels)
            loss = loss + self.perceptual_weight * parts["perceptual"]
        playing = self.adversary is not None and step >= self.adversary.start
        if playing:
            last_layer = self.tokenizer.model.decoder.conv_out.weight
            parts["adversarial"] = self.adversary.loss(result.pixels, loss, last_layer)
            loss = loss + parts["adversarial"]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        if playing:
            parts["discriminator"] = self.adversary.step(pixels, result.pixels)
        return {name: part.detach() for name, part in dict(loss=loss, **parts).items()}

    @torch.no_grad()
    def _restart_unused(self, pixels: Tensor) -> None:
        """Move unused codes to random outputs of the encoder. The first time these are all codes."""
        rows_PC = self.tokenizer.latents(pixels).flatten(0, 1)
        unused = (~self.used_V).nonzero().squeeze(1)
        chosen = torch.randint(len(rows_PC), (len(unused),), generator=self.generator)
        self.tokenizer.model.quantize.embedding.weight[unused] = rows_PC[chosen.to(rows_PC.device)]
        self.used_V.zero_()
