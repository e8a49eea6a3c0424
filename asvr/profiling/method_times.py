"""Measure a method's training step and LLaVA's. They alternate in one process, on the same samples."""

import os
import statistics
import sys
from pathlib import Path

from asvr.profiling.machine import machine
from asvr.profiling.methods import last_with_target, without_targets
from asvr.profiling.worker import OWN, Worker
from asvr.recipe.config import load_config
from asvr.recipe.recipe import Recipe

LLAVA = "LLaVA"


def time_method(path: Path, *, rounds: int, options: dict | None = None, samples: int | None = None) -> dict:
    """Measure the last stage that has the target. Both models must be small enough for one process.

    Weights and samples are random. Truths and the encoder's features are cached if they can be. samples: per step; the
    default is the config's. The result has the ratio of clock time and of processor time, see `_ratio`. Other processes
    of a shared machine change processor time less. extra_flops: the FLOPs that the method adds to these steps, in
    percent (`asvr.flops.step`). load: the machine's load averages over a minute, before and after; this benchmark is 1
    of it.
    """
    options, load = options or {}, [os.getloadavg()[0]]
    stage = last_with_target(Recipe(load_config(path, options)))
    samples = samples or stage.data.global_batch
    spec = dict(config=str(path), stage=stage.name, implementation=OWN, codes="cached", cached_features=True)
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
    """The ratio of seconds over pairs of neighbouring steps: median, quartiles, least and most. And the median seconds
    of each side."""
    ratios = [theirs / plain for plain, theirs in zip(base, own, strict=True)]
    return dict(
        ratio=statistics.median(ratios),
        quartiles=statistics.quantiles(ratios, n=4)[::2],
        least_and_most=[min(ratios), max(ratios)],
        seconds={LLAVA: statistics.median(base), "method": statistics.median(own)},
    )
