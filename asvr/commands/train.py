"""Train a config: run its stages in order.

If you start the same command again, it skips finished stages and goes on from the newest checkpoint.

examples:
  asvr train asvr_mini
  asvr train my_config.py --cfg-options optim.lr=1e-4 schedule.steps=500
  asvr train asvr_vicuna7b --dry-run
  torchrun --standalone --nproc-per-node 8 -m asvr train asvr_vicuna7b_8x80gb
"""

import argparse
from pathlib import Path

from asvr.base.allocator import keep_freed_memory
from asvr.base.interruption import interruptible
from asvr.commands.cli import add_cfg_options, add_config, new_parser, parse_cfg_options

EXIT_CODES = """exit codes:
  0   the run is finished
  1   an error that you can correct; the last line says what is wrong
  2   wrong arguments
  75  SIGTERM, SIGUSR1 or SIGINT ended the run. If a stage was training, a checkpoint was written. The same command goes
      on. A second signal, at least one second later, ends the run at once."""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = new_parser(prog, __doc__, epilog=EXIT_CODES)
    add_config(parser)
    parser.add_argument("--work-dir", type=Path, help="the folder for all files (default: work_dirs/<config name>)")
    parser.add_argument("--stage", help="run only this stage")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|CHECKPOINT",
        help="auto (default): go on from the state of the work dir; never: start from the beginning, and rename the "
        "old run; or a checkpoint folder to go on from",
    )
    parser.add_argument("--seed", type=int, help="the seed, in place of runtime.seed")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only print sizes, FLOPs and the memory plan; no weights are needed",
    )
    add_cfg_options(parser)
    return parser


@interruptible()  # from the first import on
def main() -> None:
    args = parser().parse_args()
    keep_freed_memory()
    from asvr.recipe.config import load_config, options_without_effect  # here: --help need not wait for torch

    options = parse_cfg_options(args.cfg_options)
    if args.seed is not None:
        options["runtime.seed"] = args.seed
    cfg = load_config(args.config, options)
    if args.dry_run:
        from asvr.profiling.dry_run import dry_run

        if args.stage is not None or args.resume != "auto" or args.work_dir is not None:
            print("--dry-run shows all stages and writes nothing: --stage, --resume and --work-dir are ignored")
        print(dry_run(cfg))
        return
    from asvr.engine.run import run

    run(
        cfg,
        args.work_dir or Path("work_dirs") / Path(args.config).stem,
        only=args.stage,
        resume=args.resume,
        warnings=options_without_effect(cfg, options),
    )
