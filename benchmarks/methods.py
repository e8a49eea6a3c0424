"""What each reconstruction method costs beside LLaVA: FLOPs, parameters and memory counted at 7B, and the time of a
step measured on the small scenes config.

python benchmarks/methods.py --out benchmarks/results/methods
python benchmarks/methods.py --out benchmarks/results/methods --keep-times     count again, measure what is new alone

Writes --out.json, .md and .png after each method, so that a run that is ended loses no more than one.
"""

import argparse
from pathlib import Path

from asvr.commands.cli import run_tool

TARGETS = Path("configs/targets")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="of the .json, .md and .png, without suffix", required=True)
    parser.add_argument("--rounds", type=int, default=30, help="pairs of steps that a time is the median of; from 2 on")
    parser.add_argument("--keep-times", action="store_true", help="measure only methods that --out has no time of")
    parser.add_argument("--counted", type=Path, default=TARGETS / "vicuna7b", help="folder of configs to count")
    parser.add_argument("--timed", type=Path, default=TARGETS / "scenes", help="folder of configs to measure")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from asvr.profiling.method_costs import compare_methods  # here: --help need not wait for torch

    folders = dict(counted=args.counted, timed=args.timed)
    print(compare_methods(**folders, out=args.out, rounds=args.rounds, keep_times=args.keep_times))


if __name__ == "__main__":
    run_tool(main)
