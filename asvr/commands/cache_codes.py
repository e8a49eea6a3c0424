"""Compute the target codes of a config's images before training.

A training run reads them with `data.cache='codes'` and `data.cache_dir='DIR'`. If you start the command again, it goes
on where it stopped. Several processes can share the work: `--shard 0/4` to `--shard 3/4`.

example:
  asvr cache-codes my_config.py --out codes
"""

import argparse
from pathlib import Path

from asvr.commands.cli import add_cfg_options, add_config, new_parser, parse_cfg_options


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = new_parser(prog, __doc__)
    add_config(parser)
    parser.add_argument("--out", type=Path, help="the folder for the codes (default: the config's data.cache_dir)")
    parser.add_argument("--shard", default="0/1", help="i/n: compute part i of n, counted from 0 (default: 0/1)")
    parser.add_argument("--workers", type=int, help="processes that open images (default: data.num_workers)")
    add_cfg_options(parser)
    return parser


def main() -> None:
    args = parser().parse_args()
    from asvr.engine.codes import run_config  # here: --help need not wait for torch

    options = parse_cfg_options(args.cfg_options)
    run_config(args.config, out=args.out, shard=args.shard, workers=args.workers, cfg_options=options)
