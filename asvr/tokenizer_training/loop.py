"""Shared parts of the training of visual tokenizers: batches of images, a schedule, and the loop over steps."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from asvr.data.images import open_image
from asvr.data.refusals import Refused
from asvr.data.transforms import ImageTransform, Pixels, stacked
from asvr.data.workers import TIMEOUT, items_of, require_room_for_workers

logger = logging.getLogger("asvr")

AHEAD = 2  # batches that each worker keeps ready
METRICS = "metrics.jsonl"


class Images(Dataset):
    """The pixels of images (files or PIL images). A broken image raises ``Refused`` with the file's name. With
    ``on_error='skip'`` it is logged and gives None."""

    def __init__(self, sources: list, transform: ImageTransform, aspect: str, on_error: str):
        self.sources, self.transform, self.aspect, self.on_error = sources, transform, aspect, on_error

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, i: int) -> Pixels | None:
        try:
            return self.transform(open_image(self.sources[i]), self.aspect)
        except Refused as error:
            if self.on_error == "raise":
                raise
            logger.warning("left out: %s", error)
            return None


class Batches:
    """Batches of the pixels of all readable images. With ``generator`` each epoch has another order."""

    def __init__(self, images: Images, batch_size: int, *, num_workers: int = 0, generator=None):
        if num_workers:
            pixels, what = torch.empty(3, *images.transform.size), f"batches of {batch_size} images"
            require_room_for_workers(pixels, share=batch_size, workers=num_workers, ahead=AHEAD, what=what)
        self.loader = DataLoader(
            images,
            batch_size,
            shuffle=generator is not None,
            drop_last=generator is not None,
            num_workers=num_workers,
            generator=generator,
            collate_fn=_stack,
            prefetch_factor=AHEAD if num_workers else None,
            timeout=TIMEOUT if num_workers else 0,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Pixels]:
        return (pixels for pixels in items_of(self.loader) if pixels is not None)


def _stack(pixels: list[Pixels | None]) -> Pixels | None:
    kept = [image for image in pixels if image is not None]
    return stacked(kept) if kept else None


def warmed_cosine(optimizer, steps: int, warmup_ratio: float) -> torch.optim.lr_scheduler.LambdaLR:
    """A linear warm-up, then a cosine to zero."""
    warmup = max(1, round(warmup_ratio * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def run_steps(
    train_step: Callable[[int, Pixels], dict[str, Tensor]],
    batches: Batches,
    *,
    steps: int,
    name: str,
    work_dir: Path,
    every: int,
) -> tuple[list[dict], float]:
    """Call ``train_step(step, pixels)`` for all steps. It returns losses by name.

    Returns the rows of the file `METRICS`, one for each ``every`` steps, and the seconds of the training.
    """
    started, rows = time.perf_counter(), []
    with (
        tqdm(total=steps, desc=name, unit="step") as bar,
        (work_dir / METRICS).open("w", buffering=1, encoding="utf-8") as file,
    ):
        for step, pixels in enumerate(islice(_forever(batches), steps)):
            losses = train_step(step, pixels)
            bar.update()
            if step % every == 0 or step == steps - 1:
                rows.append(dict(step=step, **{name: value.item() for name, value in losses.items()}))
                file.write(json.dumps(rows[-1]) + "\n")
                bar.set_postfix(loss=f"{rows[-1]['loss']:.4f}")
    return rows, time.perf_counter() - started


def split(
    dataset, transform: ImageTransform, aspect: str, held_out: int, generator: torch.Generator
) -> tuple[Images, Images]:
    """The images that are only used to measure, and the images for training."""
    sources = shuffled(dataset, generator)
    if not 0 < held_out < len(sources):
        raise ValueError(f"held_out={held_out}: expected 1 to {len(sources) - 1}, there are {len(sources)} images")
    test, train = sources[:held_out], sources[held_out:]
    return tuple(Images(part, transform, aspect, dataset.on_error) for part in (test, train))


def prepare(work_dir: str | Path, device: str) -> tuple[Path, torch.device]:
    Path(work_dir).mkdir(parents=True, exist_ok=True)
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return Path(work_dir), torch.device(name)


def shuffled(dataset, generator: torch.Generator) -> list:
    sources = [source for _, source in dataset.images()]
    return [sources[i] for i in torch.randperm(len(sources), generator=generator).tolist()]


def _forever(batches: Batches) -> Iterator[Tensor]:
    while True:
        seen = 0
        for pixels in batches:
            seen += 1
            yield pixels
        if not seen:
            raise ValueError("none of the training images can be read")
