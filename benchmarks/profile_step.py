"""Where the time of a training step goes, by kind of operation (torch's profiler, random weights, synthetic samples).

python benchmarks/profile_step.py CONFIG [--samples 32] [--stage pretrain] [--out FILE]

The last line of the output is ``FIGURES`` and a JSON object: seconds of the step before, and the percentage of each
kind. --out writes all kernels as JSON, and a table.
"""

import argparse
import json
from pathlib import Path

from asvr.base.allocator import keep_freed_memory
from asvr.commands.cli import add_cfg_options, parse_cfg_options, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("--stage", help="default: the last")
    parser.add_argument("--samples", type=int, default=8, help="of a step")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before the one that is profiled")
    parser.add_argument("--out", type=Path, help="of the .json and .md, without suffix")
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.samples < 1 or args.warm_up < 1:
        raise ValueError("--samples and --warm-up: expected at least 1")
    kept = keep_freed_memory()  # as in training; without it, much of the time goes into clearing pages
    from asvr.profiling.machine import in_words
    from asvr.profiling.machine import machine as machine_of
    from asvr.profiling.report import save
    from asvr.profiling.step_profile import markdown, profile_step, shares
    from asvr.profiling.worker import OWN, Worker

    spec = dict(
        config=args.config, cfg_options=parse_cfg_options(args.cfg_options), stage=args.stage, implementation=OWN
    )
    worker = Worker(dict(spec, codes="cached", samples=args.samples, steps=args.warm_up + 1, first=0))
    seconds = sum(worker.run(args.warm_up)["steps"][-1]["seconds"].values())
    rows = profile_step(worker)
    machine = machine_of(worker.device)
    how = worker.how + ("; freed memory kept" if kept else "")
    text = f"{in_words(machine)}; {args.config}, {args.samples} samples a step of {seconds:.4g} s; {how}\n\n"
    save(args.out, dict(machine=machine, how=how, seconds=seconds, rows=rows), text + markdown(rows))
    figures = dict(seconds=round(seconds, 4)) | {
        f"{kind}_percent": round(value, 1) for kind, value in shares(rows).items()
    }
    print("FIGURES", json.dumps(figures))


if __name__ == "__main__":
    run_tool(main)
