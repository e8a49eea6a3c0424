"""Check an exported folder in transformers, vLLM or SGLang: does it give the same answers as this library?

Each engine loads the folder and answers questions about images, with greedy decoding. Token ids must be the same, and
log probabilities almost the same. The exit code is 1 if an engine differs. Engines that are not installed are listed.

examples:
  asvr check-export models/my_llava
  asvr check-export models/my_llava --against work_dirs/asvr_vicuna7b --engine vllm --dtype bfloat16 --tolerance 0.2
  asvr check-export models/my_llava --image cat.jpg --question "What is it?"
"""

import argparse
import sys
from pathlib import Path

ENGINES = ("all", "transformers", "vllm", "sglang")


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a folder that `asvr convert export` wrote")
    parser.add_argument("--engine", default="all", choices=ENGINES, help="the engine (default: all that are installed)")
    parser.add_argument(
        "--against",
        metavar="MODEL",
        help="the model that was exported (a work dir or a saved model); the reference is its answers in this library "
        "(default: the answers of transformers)",
    )
    parser.add_argument(
        "--image", type=Path, nargs="+", default=[], metavar="FILE", help="images (default: generated images)"
    )
    parser.add_argument(
        "--question", nargs="+", default=[], metavar="TEXT", help="questions; each is asked about all images together"
    )
    parser.add_argument("--max-new-tokens", type=int, default=32, help="the most tokens of an answer (default: 32)")
    parser.add_argument(
        "--max-length",
        type=int,
        help="the most tokens of a prompt with its answer; vLLM and SGLang reserve memory for them",
    )
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="the dtype of the engines"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.05,
        help="the allowed difference of log probabilities, in nats (default: %(default)s)",
    )
    return parser


def main() -> None:
    args = parser().parse_args()
    from asvr.commands.cli import require_file, require_positive

    require_positive(dict(max_new_tokens=args.max_new_tokens, max_length=args.max_length))
    for file in args.image:
        require_file(dict(image=file))
    if not args.tolerance >= 0:
        raise ValueError(f"--tolerance {args.tolerance}: expected a number of nats, 0 or more")
    from asvr.interchange.check_export import check_export  # here: --help need not wait for torch
    from asvr.interchange.serving import Settings

    report = check_export(
        args.folder,
        engine=args.engine,
        against=args.against,
        images=args.image,
        questions=args.question,
        settings=Settings(max_new_tokens=args.max_new_tokens, dtype=args.dtype, max_length=args.max_length),
        tolerance=args.tolerance,
    )
    print(report.text)
    sys.exit(0 if report.same else 1)
