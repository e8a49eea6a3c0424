"""How fast the input side is: steps, samples and images a second by number of workers, without a model.

python benchmarks/dataloader.py CONFIG [--workers 0 1 2]

Samples are synthetic (images of 640 x 480 pixels, kept as JPEG in memory), the collate function is the config's own.
"""

import argparse
import io
import time
from pathlib import Path

from asvr.commands.cli import add_cfg_options, parse_cfg_options, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("--stage", help="default: the last")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=8, help="at least 4 a worker, whatever is given")
    parser.add_argument("--samples", type=int, help="of a step; default: the config's global_batch")
    parser.add_argument("--out", type=Path, help="of the .json and .md, without suffix")
    add_cfg_options(parser)
    return parser.parse_args()


def encoded(samples, count: int = 64):
    """So many samples over and over, their images as JPEG, so that workers have to decode them."""
    from PIL import Image

    def jpeg(picture) -> bytes:
        file = io.BytesIO()
        picture.save(file, "jpeg", quality=90)
        return file.getvalue()

    kept = [samples[i] for i in range(count)]
    for item in kept:
        item["images"] = [jpeg(picture) for picture in item["images"]]

    class Encoded:
        def __len__(self) -> int:
            return 10**6

        def __getitem__(self, i: int) -> dict:
            item = kept[i % count]
            return dict(item, images=[Image.open(io.BytesIO(data)) for data in item["images"]])

    return Encoded()


def main() -> None:
    args = parse_args()
    from itertools import islice

    from asvr.base.text import table
    from asvr.profiling.machine import in_words, machine
    from asvr.profiling.report import save
    from asvr.profiling.synthetic import IMAGE_SIZE, SyntheticSamples
    from asvr.profiling.worker import PadId
    from asvr.recipe.build import build_collate, build_device, build_train_loader, pack_limits
    from asvr.recipe.config import load_config
    from asvr.recipe.preflight import build_meta
    from asvr.recipe.recipe import Recipe

    stage = Recipe(load_config(args.config, parse_cfg_options(args.cfg_options))).stage(args.stage)
    if args.samples:
        stage.data.global_batch = args.samples
    model = build_meta(stage)
    samples = SyntheticSamples(
        num_image_tokens=model.layout(IMAGE_SIZE).num_tokens,
        max_length=stage.data.max_length,
        vocab_size=model.llm.vocab_size,
    )
    collate = build_collate(stage.data, model, PadId, packed=pack_limits(stage.data) is not None)
    rows = []
    for workers in args.workers:
        stage.data.num_workers = workers
        steps = iter(build_train_loader(stage, encoded(samples), collate))
        for _ in range(1 + 2 * workers):  # starts the workers, and takes what they made meanwhile
            next(steps)
        begin = time.perf_counter()
        windows = list(islice(steps, max(args.steps, 4 * workers)))
        elapsed = time.perf_counter() - begin
        images, tokens, positions = (
            sum(count(batch) for window in windows for batch in window)
            for count in (lambda b: b.num_images, lambda b: b.num_tokens, lambda b: b.input_ids_BT.numel())
        )
        rows.append(
            dict(
                workers=workers,
                steps=len(windows),
                steps_per_s=len(windows) / elapsed,
                images_per_s=images / elapsed,
                tokens_per_s=tokens / elapsed,
                real_tokens_percent=100 * tokens / positions,
            )
        )
    found = machine(build_device("cpu"))
    text = f"{in_words(found)}; {args.config}, steps of {stage.data.global_batch} samples\n\n"
    cells = [
        [
            str(row["workers"]),
            str(row["steps"]),
            f"{row['steps_per_s']:.2f}",
            f"{row['images_per_s']:.1f}",
            f"{row['tokens_per_s']:.0f}",
            f"{row['real_tokens_percent']:.1f} %",
        ]
        for row in rows
    ]
    text += table(["workers", "steps", "steps/s", "pictures/s", "tokens/s", "real tokens"], cells)
    save(args.out, dict(machine=found, rows=rows), text)


if __name__ == "__main__":
    run_tool(main)
