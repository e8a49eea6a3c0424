"""Answer questions with a trained run.

python tools/evaluate.py configs/asvr_mini.py [--questions FILE --image-folder DIR]

FILE is LLaVA-format JSON or JSONL whose last turn is the expected answer; without it, the config's evaluation data.
"""

import argparse
from pathlib import Path

from asvr.cli import add_cfg_options, parse_cfg_options, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="the config that was trained")
    parser.add_argument("--work-dir", type=Path, help="its work dir (default: work_dirs/<config name>)")
    parser.add_argument("--stage", help="the stage whose model answers (default: the last one)")
    parser.add_argument("--questions", type=Path, help="LLaVA-format JSON or JSONL")
    parser.add_argument("--image-folder", type=Path, default=Path(), help="where the pictures of --questions are")
    parser.add_argument("--limit", type=int, help="only the first questions")
    parser.add_argument(
        "--out",
        type=Path,
        help="of result.json and answers.jsonl (default: WORK_DIR/evaluation[/QUESTIONS' name])",
    )
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from asvr.config import load_config  # here: --help need not wait for torch
    from asvr.engine.run import evaluate_run

    evaluate_run(
        load_config(args.config, parse_cfg_options(args.cfg_options)),
        args.work_dir or Path("work_dirs") / Path(args.config).stem,
        stage=args.stage,
        questions=args.questions,
        image_folder=args.image_folder,
        limit=args.limit,
        out=args.out,
    )


if __name__ == "__main__":
    run_tool(main)
