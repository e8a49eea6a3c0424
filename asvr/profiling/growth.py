"""How the cost of a step grows with one size at a time: time and memory measured small, FLOPs and memory counted large.

An exponent ``k`` means that the cost grows like the size to the power of ``k``: 1 is proportional. It is the slope of a
least-squares line through the logarithms. The last exponent is the slope between the two largest sizes.
"""

import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from asvr.base.plots import optional, plain
from asvr.base.text import table
from asvr.data.layouts import Layout
from asvr.flops.count import Sample, forward_parts
from asvr.flops.memory import plan_memory
from asvr.profiling.machine import in_words, machine
from asvr.profiling.report import training_flops
from asvr.profiling.synthetic import IMAGE_SIZE
from asvr.profiling.worker import OWN, Worker
from asvr.recipe.config import load_config
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe

CPU = torch.device("cpu")
TEXT = 128  # text tokens of a counted sample
PATCH = 14
TILES = [(1, 2), (2, 1), (2, 2), (1, 3), (3, 1)]
HEAD, TOKENIZER = "model.reconstruction.0.head", "model.reconstruction.0.tokenizer"
COSTS = ("seconds", "peak_bytes", "flops", "activations", "states")  # in the order of the plots
UNITS = dict(seconds=("s", 1), peak_bytes=("GiB", 2**30), flops=("TFLOP", 1e12))
UNITS |= dict(activations=("GB", 1e9), states=("GB", 1e9))
TITLES = dict(
    seconds="time of a step",
    peak_bytes="peak memory",
    flops="FLOPs of a sample, 7B",
    activations="activations, 7B",
    states="weights, gradients, optimiser, 7B",
)


@dataclass(frozen=True)
class Axis:
    """A size that grows. points: the overrides of each size for the config that is counted, and for the small one."""

    name: str
    points: list[tuple[dict, dict]]


def _llm(hidden: int, layers: int, inner: int, heads: int) -> dict:
    sizes = dict(hidden_size=hidden, num_hidden_layers=layers, intermediate_size=inner, num_attention_heads=heads)
    return {f"model.llm.arch.{key}": value for key, value in sizes.items()}


def axes() -> list[Axis]:
    sides = (14, 20, 27, 38, 54)  # visual tokens in a row of the grid
    images = [{"model.encoder.arch.image_size": PATCH * side} for side in sides]
    tiles = [
        {"model.layout": dict(type="AnyRes", grids=TILES[:count])} if count else {} for count in (0, 2, 3)
    ]  # of an image of 4:3: itself, 2 tiles, 4 tiles
    square = {"data.image_aspect": "square", "stages.finetune.data.image_aspect": "square"}
    tiles = [options | square for options in tiles]
    depths = [{f"{TOKENIZER}.depth": depth} for depth in (1, 2, 4, 8, 16)]
    books = [{f"{TOKENIZER}.codebook_size": size} for size in (1024, 4096, 16384, 65536)]
    large = (_llm(2048, 22, 5632, 16), _llm(3072, 28, 8192, 24), _llm(4096, 32, 11008, 32), _llm(5120, 40, 13824, 40))
    small = (_llm(128, 2, 352, 2), _llm(256, 4, 704, 4), _llm(384, 6, 1024, 6), _llm(512, 8, 1408, 8))
    return [
        Axis("visual tokens", list(zip(images, images, strict=True))),
        Axis("visual tokens, by tiles", list(zip(tiles, tiles, strict=True))),
        Axis("code depth", list(zip(depths, depths, strict=True))),
        Axis("codebook size", list(zip(books, books, strict=True))),
        Axis("LLM parameters", list(zip(large, small, strict=True))),
    ]


def size_of(axis: str, model, layout: Layout) -> int:
    """The size of a model along an axis. layout: of the images, see `asvr.data.layouts`."""
    if axis == "LLM parameters":
        return sum(p.numel() for p in model.llm.parameters())
    tokenizer = model.targets[0].tokenizer
    found = {"code depth": tokenizer.depth, "codebook size": max(tokenizer.codebook_sizes)}
    return found[axis] if axis in found else layout.num_tokens


def counted(path: Path, axis: Axis, fixed: dict | None = None) -> list[dict]:
    """FLOPs of a training step on one sample, and planned bytes, for each size. Only the last stage is counted."""
    rows = []
    for options, _ in axis.points:
        options = (fixed or {}) | options
        stage = Recipe(load_config(path, options)).last
        longest = build_meta(stage).layout.largest().num_tokens + TEXT
        own = {"data.max_length": longest, "data.micro_batch": 1, "stages.finetune.data.micro_batch": 1}
        own |= {"model.llm.arch.max_position_embeddings": max(4096, longest), "runtime.device": "cpu"}
        stage = Recipe(load_config(path, options | own)).last
        model = build_meta(stage)
        size = size_of(axis.name, model, model.layout.largest())
        parts = forward_parts(model.eval(), Sample(text_tokens=TEXT))
        flops = training_flops(stage, model, parts)["cached"]
        plan = plan_memory(stage, build_meta(stage))
        rows.append(dict(size=size, flops=flops, activations=plan.activations[plan.mode], states=plan.states))
    return rows


def measured(path: Path, axis: Axis, *, samples: int, rounds: int, fixed: dict | None = None) -> list[dict]:
    """Seconds and peak bytes of a step, for each size. The sizes take turns, since the speed of a machine drifts."""
    workers = []
    for _, options in axis.points:
        spec = dict(
            config=str(path), cfg_options=(fixed or {}) | options, stage=None, implementation=OWN, codes="cached"
        )
        workers.append(Worker(dict(spec, samples=samples, steps=2 + rounds, first=0)))
        workers[-1].run(1)  # to warm up
    turns = [[worker.run(1)["steps"][0] for worker in workers] for _ in range(rounds)]
    rows = []
    for worker, steps in zip(workers, zip(*turns, strict=True), strict=True):
        seconds = [sum(step["seconds"].values()) for step in steps]
        size = size_of(axis.name, worker.model, worker.model.layout(IMAGE_SIZE))
        row = dict(size=size, seconds=statistics.median(seconds))
        peak = worker.peak()["peak_bytes"]
        rows.append(dict(row, all_seconds=[round(value, 3) for value in seconds], peak_bytes=peak))
        print(f"{axis.name} {row['size']}: {row['seconds']:.3g} s", file=sys.stderr)
    return rows


def exponents(rows: list[dict], cost: str) -> tuple[float, float]:
    """The slope of log cost over log size: by least squares, and between the two largest sizes."""
    points = sorted((math.log(row["size"]), math.log(row[cost])) for row in rows)
    (x1, y1), (x2, y2) = points[-2:]
    return statistics.linear_regression(*zip(*points, strict=True)).slope, (y2 - y1) / (x2 - x1)


def grow(
    counted_path: Path,
    measured_path: Path,
    *,
    samples: int,
    rounds: int,
    only: list[str] | None = None,
    fixed: tuple[dict, dict] = ({}, {}),
) -> Iterator[dict]:
    """Take one axis after another, and yield the result so far.

    samples: of a measured step. only: names of axes; None: all. fixed: overrides of the two configs. Raises
    ``ValueError`` for an unknown axis.
    """
    names = [axis.name for axis in axes()]
    if unknown := set(only or []) - set(names):
        raise ValueError(f"--axes {' '.join(sorted(unknown))}: expected some of {', '.join(names)}")
    found: dict = {}
    for axis in axes():
        if only and axis.name not in only:
            continue
        small = measured(measured_path, axis, samples=samples, rounds=rounds, fixed=fixed[1])
        large = counted(counted_path, axis, fixed[0])
        costs = {cost: exponents(small if cost in small[0] else large, cost) for cost in COSTS}
        found[axis.name] = dict(measured=small, counted=large, exponents=costs)
        configs = dict(counted=counted_path.stem, measured=measured_path.stem)
        yield dict(machine=machine(CPU), configs=configs, samples=samples, rounds=rounds, axes=dict(found))


def markdown(result: dict) -> str:
    """A table of exponents, and a table for each axis."""
    configs = result["configs"]
    lines = [
        f"{in_words(result['machine'])}; measured: {configs['measured']}, {result['samples']} samples a step, median "
        f"of {result['rounds']}; counted: {configs['counted']}, the last stage, one sample with {TEXT} text tokens",
        "",
        "Exponents: by least squares, and between the two largest sizes.",
        "",
    ]
    cells = [
        [name, *(f"{own['exponents'][cost][0]:.2f}, {own['exponents'][cost][1]:.2f}" for cost in COSTS)]
        for name, own in result["axes"].items()
    ]
    lines.append(table(["grows", *(TITLES[cost] for cost in COSTS)], cells))
    for name, own in result["axes"].items():
        for kind, header in (("measured", COSTS[:2]), ("counted", COSTS[2:])):
            cells = [
                [f"{row['size']:,}", *(f"{row[cost] / UNITS[cost][1]:.4g}" for cost in header)] for row in own[kind]
            ]
            lines.append(table([f"{name}, {kind}", *(f"{TITLES[c]}, {UNITS[c][0]}" for c in header)], cells))
    return "\n".join(lines)


def draw(result: dict, file: Path) -> None:
    """Write a figure with a row for each axis. All scales are logarithmic."""
    with optional(file):
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        axes_found = result["axes"]
        shape = dict(figsize=(2.6 * len(COSTS), 2.2 * len(axes_found)), squeeze=False)
        figure, plots = plt.subplots(len(axes_found), len(COSTS), **shape)
        for row, (name, own) in zip(plots, axes_found.items(), strict=True):
            for axis, cost in zip(row, COSTS, strict=True):
                rows = own["measured"] if cost in own["measured"][0] else own["counted"]
                axis.loglog([r["size"] for r in rows], [r[cost] / UNITS[cost][1] for r in rows], "o-", markersize=3)
                axis.set_title(plain(f"{TITLES[cost]}: {own['exponents'][cost][0]:.2f}"), fontsize=7)
                axis.set_xlabel(plain(name), fontsize=7)
                axis.set_ylabel(UNITS[cost][0], fontsize=7)
                axis.tick_params(labelsize=6, which="both")
        figure.tight_layout()
        figure.savefig(file, dpi=110)
        plt.close(figure)
