"""Fit or train the visual tokenizer of a config: ``python tools/train_tokenizer.py configs/tokenizers/NAME.py``."""

import argparse

from mmengine.config import DictAction

from asvr.models.tokenizers.run import run_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--work-dir", help="default: work_dirs/<name of the config>")
    parser.add_argument("--seed", type=int, help="default: the config's, or 0")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={}, metavar="KEY=VALUE")
    args = parser.parse_args()
    try:
        run_config(args.config, work_dir=args.work_dir, seed=args.seed, cfg_options=args.cfg_options)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
