"""Fit or train the visual tokenizer of a config: ``python tools/train_tokenizer.py configs/tokenizers/NAME.py``."""

import argparse

from asvr.commands.cli import add_cfg_options, parse_cfg_options


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--work-dir", help="default: work_dirs/<name of the config>")
    parser.add_argument("--seed", type=int, help="default: the config's, or 0")
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from asvr.tokenizer_training.run import run_config  # here: --help need not wait for torch

    run_config(args.config, work_dir=args.work_dir, seed=args.seed, cfg_options=parse_cfg_options(args.cfg_options))
