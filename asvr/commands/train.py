"""Train a config: run its stages in order.

Started again, the same command skips finished stages and goes on from the newest checkpoint.

examples:
  asvr train asvr_mini
  asvr train my_config.py --cfg-options optim.lr=1e-4 schedule.steps=500
  asvr train asvr_vicuna7b --dry-run
  torchrun --standalone --nproc-per-node 8 -m asvr train asvr_vicuna7b --cfg-options parallel.type=FSDP2
"""

import argparse
from pathlib import Path

from asvr.base.allocator import keep_freed_memory
from asvr.base.interruption import interruptible
from asvr.commands.cli import add_cfg_options, add_config, new_parser, parse_cfg_options

EXIT_CODES = """exit codes: 0 finished; 75 ended by SIGTERM, SIGUSR1 or SIGINT, behind a checkpoint where a stage was
training: the same command goes on (a second signal, a second later, ends it at once); 1 something to mend, told in the
last line, such as more skipped steps than runtime.max_skipped, whose checkpoint is kept; 2 wrong arguments"""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = new_parser(prog, __doc__, epilog=EXIT_CODES)
    add_config(parser)
    parser.add_argument("--work-dir", type=Path, help="where everything is written (default: work_dirs/<config name>)")
    parser.add_argument("--stage", help="run only this stage")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|CHECKPOINT",
        help="auto (default): go on where the work dir stands; never: start anew, the old run is renamed; "
        "or a checkpoint folder to go on from",
    )
    parser.add_argument("--seed", type=int, help="replaces runtime.seed")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build on the meta device, print sizes, FLOPs and the memory plan, and stop; needs no weights",
    )
    add_cfg_options(parser)
    return parser


@interruptible()  # from the first import on
def main() -> None:
    args = parser().parse_args()
    keep_freed_memory()
    from asvr.recipe.config import load_config  # here: --help need not wait for torch

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

    run(cfg, args.work_dir or Path("work_dirs") / Path(args.config).stem, only=args.stage, resume=args.resume)
