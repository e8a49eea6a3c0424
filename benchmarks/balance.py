"""How long processes wait for each other in a step, if samples are dealt by their number or by their cost.

python benchmarks/balance.py configs/asvr_vicuna7b.py [--out FILE]

Nothing is trained. The time of a process is the cost of its samples, in FLOPs of a training step (`asvr.flops.step`),
at a speed that is the same everywhere. The lengths are as in LLaVA's instruction data (`asvr.profiling.synthetic`).
Idle time is the share of a step in which an average process waits for the slowest one.
"""

import argparse
import statistics
from itertools import islice
from pathlib import Path

from asvr.commands.cli import run_tool

LAYOUTS = ((8, 128), (8, 256), (64, 128), (64, 256), (64, 512), (64, 1024))  # processes, samples of a step


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--stage", help="default: the last")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, help="of the .json and .md, without suffix")
    return parser.parse_args()


def idle_percent(costs: list[float], shares: list[list[int]]) -> float:
    times = [sum(costs[i] for i in own) for own in shares]
    return 100 * (1 - statistics.mean(times) / max(times))


def main() -> None:
    args = parse_args()
    from asvr.base.text import table
    from asvr.data.packing import Balance, deal
    from asvr.data.samplers import BatchSampler, ResumableSampler
    from asvr.flops.step import StepFlops
    from asvr.profiling.report import save
    from asvr.profiling.synthetic import SyntheticSamples
    from asvr.recipe.recipe import load_recipe

    recipe = load_recipe(args.config)
    stage = recipe.stages[args.stage] if args.stage else recipe.last
    flops = StepFlops(stage)
    balance = Balance(rank=0, world_size=1, **flops.cost(encodes=stage.data.get("cache") is not True))
    visual = flops.image.num_tokens
    samples = SyntheticSamples(num_image_tokens=visual, max_length=stage.data.max_length, vocab_size=32000)
    rows = []
    for processes, batch in LAYOUTS:
        found = dict(number=[], cost=[], least=[])
        order = iter(BatchSampler(ResumableSampler(length=args.steps * batch), size=batch))
        for step in islice(order, args.steps):
            sizes = [samples.size(i) for i in step]
            costs = [balance.cost(text + images * visual, images * flops.crops) for text, images in sizes]
            found["number"].append(idle_percent(costs, [list(range(batch))[r::processes] for r in range(processes)]))
            found["cost"].append(idle_percent(costs, deal(costs, processes)))
            # The longest sample cannot be split.
            found["least"].append(max(0.0, 100 * (1 - sum(costs) / processes / max(costs))))
        means = {f"{name}_percent": statistics.mean(values) for name, values in found.items()}
        rows.append(dict(processes=processes, samples=batch, **means))
    header = ["processes", "samples a step", "idle, by number", "idle, by cost", "idle at least"]
    cells = [
        [str(row["processes"]), str(row["samples"])]
        + [f"{row[f'{name}_percent']:.1f} %" for name in ("number", "cost", "least")]
        for row in rows
    ]
    text = f"{args.config.stem}, stage {stage.name}; mean of {args.steps} steps\n\n" + table(header, cells)
    save(args.out, dict(config=args.config.stem, stage=stage.name, steps=args.steps, rows=rows), text)


if __name__ == "__main__":
    run_tool(main)
