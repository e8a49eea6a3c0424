"""Fit or train the visual tokenizer of a config.

example:
  asvr train-tokenizer tokenizers/semantic_mini
"""

import argparse

from asvr.commands.cli import add_cfg_options, add_config, new_parser, parse_cfg_options


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = new_parser(prog, __doc__)
    add_config(parser)
    parser.add_argument("--work-dir", help="the folder for all files (default: work_dirs/<config name>)")
    parser.add_argument("--seed", type=int, help="the seed (default: the config's, or 0)")
    add_cfg_options(parser)
    return parser


def main() -> None:
    args = parser().parse_args()
    from asvr.tokenizer_training.run import run_config  # here: --help need not wait for torch

    run_config(args.config, work_dir=args.work_dir, seed=args.seed, cfg_options=parse_cfg_options(args.cfg_options))
