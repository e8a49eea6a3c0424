"""The memory plan of ``--dry-run`` against measured peaks, stage by stage.

python benchmarks/memory.py CONFIG [--stages finetune] [--rows 1 2] [--tokens 1024]

A step of two micro-batches runs with random weights in a process of its own; its peak is what tensors take. Rows are
full, as the plan takes them to be.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from asvr.commands.cli import add_cfg_options, parse_cfg_options, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("--stages", nargs="+", help="the stages to measure (default: all)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--modes", nargs="+", default=["none", "selective", "full"])
    parser.add_argument("--out", type=Path, help="of the .json and .md, without suffix")
    parser.add_argument("--measure", nargs=3, metavar=("STAGE", "ROWS", "MODE"), help=argparse.SUPPRESS)
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from asvr.base.text import table
    from asvr.flops.memory import plan_memory
    from asvr.profiling.machine import in_words, machine
    from asvr.profiling.measured_memory import measured, prepare
    from asvr.profiling.report import save
    from asvr.recipe.build import build_device
    from asvr.recipe.config import load_config
    from asvr.recipe.preflight import build_meta
    from asvr.recipe.recipe import Recipe

    recipe = Recipe(load_config(args.config, parse_cfg_options(args.cfg_options)))
    if args.measure:
        stage, rows, mode = args.measure
        print(measured(prepare(recipe.stage(stage), int(rows), args.tokens, mode)))
        return
    found = []
    for name in args.stages or recipe.stages:
        for rows in args.rows:
            for mode in args.modes:
                stage = prepare(recipe.stage(name), rows, args.tokens, mode)
                plan = plan_memory(stage, build_meta(stage))
                command = [sys.executable, *sys.argv, "--measure", name, str(rows), mode]
                done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
                if done.returncode:
                    raise ValueError(f"{name}, {rows} rows, {mode}: {done.stderr.strip().splitlines()[-1]}")
                planned, peak = plan.total, int(done.stdout.split()[-1])
                found.append(dict(stage=name, rows=rows, mode=mode, planned=planned, measured=peak))
                print(found[-1], file=sys.stderr)
    where = machine(build_device(recipe.runtime.device))
    text = f"{in_words(where)}; {args.config}, rows of {args.tokens} tokens\n\n"
    cells = [
        [row["stage"], str(row["rows"]), row["mode"]]
        + [f"{row[key] / 1e9:.2f}" for key in ("planned", "measured")]
        + [f"{row['measured'] / row['planned']:.2f}"]
        for row in found
    ]
    text += table(["stage", "rows", "checkpointing", "plan, GB", "measured, GB", "measured / plan"], cells)
    save(args.out, dict(machine=where, rows=found), text)


if __name__ == "__main__":
    run_tool(main)
