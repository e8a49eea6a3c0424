"""Seconds of a method's training step beside LLaVA's: the two take turns in one process, on the same samples."""

import os
import statistics
import sys
from pathlib import Path

from asvr.profiling.machine import machine
from asvr.profiling.methods import last_with_target, without_targets
from asvr.profiling.worker import Worker
from asvr.recipe.config import load_config
from asvr.recipe.recipe import Recipe

LLAVA = "LLaVA"


def time_method(path: Path, *, rounds: int, options: dict | None = None, samples: int | None = None) -> dict:
    """Of the last stage that has the target: see `_ratio` of the time of the clock, and of the processor's alone, which
    other processes of a shared machine change less. Weights and samples are random; truths and the encoder's features
    are cached where they can be. Both models are small enough for one process.

    extra_flops: percent of what these steps need (`asvr.flops.step`). load: the machine's load averages of a minute,
    before and behind, of which this benchmark is 1. samples: of a step, by default the config's.
    """
    options, load = options or {}, [os.getloadavg()[0]]
    stage = last_with_target(Recipe(load_config(path, options)))
    samples = samples or stage.data.global_batch
    spec = dict(config=str(path), stage=stage.name, plain=False, codes="cached", cached_features=True)
    spec |= dict(samples=samples, steps=1 + rounds, first=0)
    sides = [Worker(dict(spec, cfg_options=own)) for own in (options | without_targets(path), options)]
    for side in sides:
        side.run(1)  # to warm up
    steps = [[side.run(1)["steps"][0] for side in sides] for _ in range(rounds)]
    base, own = zip(*steps, strict=True)
    load.append(os.getloadavg()[0])
    found = dict(
        stage=stage.name,
        samples=samples,
        rounds=rounds,
        clock=_ratio(*([sum(step["seconds"].values()) for step in side] for side in (base, own))),
        processor=_ratio(*([step["processor_seconds"] for step in side] for side in (base, own))),
        extra_flops=100 * (sum(step["flops"] for step in own) / sum(step["flops"] for step in base) - 1),
        how=sides[1].how,
        load=load,
        machine=machine(sides[1].device),
    )
    print(f"{path.stem}: {found['processor']['ratio']:.3f} x LLaVA's processor time", file=sys.stderr)
    return found


def _ratio(base: list[float], own: list[float]) -> dict:
    """Of seconds: the median over pairs of neighbouring steps, its quartiles, the least and the most; and each side's
    median."""
    ratios = [theirs / plain for plain, theirs in zip(base, own, strict=True)]
    return dict(
        ratio=statistics.median(ratios),
        quartiles=statistics.quantiles(ratios, n=4)[::2],
        least_and_most=[min(ratios), max(ratios)],
        seconds={LLAVA: statistics.median(base), "method": statistics.median(own)},
    )
