"""Compute the target codes of a config's pictures ahead of training: ``python tools/cache_codes.py CONFIG --out DIR``.

A training run reads them with ``data.cache='codes'`` and ``data.cache_dir='DIR'``. Started again, it goes on where it
stopped. Several processes share the work: ``--shard 0/4`` to ``--shard 3/4``.
"""

import argparse
from pathlib import Path

from asvr.commands.cli import add_cfg_options, parse_cfg_options


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("--out", type=Path, help="default: the config's data.cache_dir")
    parser.add_argument("--shard", default="0/1", help="i/n: this process's part, i from 0 (default 0/1)")
    parser.add_argument("--workers", type=int, help="processes that open pictures; default: data.num_workers")
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from asvr.engine.codes import run_config  # here: --help need not wait for torch

    options = parse_cfg_options(args.cfg_options)
    run_config(args.config, out=args.out, shard=args.shard, workers=args.workers, cfg_options=options)
