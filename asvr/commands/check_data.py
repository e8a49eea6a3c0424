"""Check all data of a config before training: every record is read and every image opened.

Several processes share the work. Refused records are reported by reason, with examples. Records that are used but
unusual are reported too (cut rows, wrong extensions, rotated photos). The folder --out gets all these records
(records.jsonl), the counts (report.json), and histograms of row lengths and image sizes (sizes.png). The command needs
the text tokenizer, but no weights.

Exit codes: 0: every record can be used; 3: some are refused; 1 or 2: the config, a file or the command is wrong.

examples:
  asvr check-data my_config.py
  asvr check-data --ann-file data.json --image-folder images --template vicuna_v1 --tokenizer lmsys/vicuna-7b-v1.5
"""

import argparse
import sys
from pathlib import Path

from asvr.commands.cli import (
    add_cfg_options,
    add_config,
    new_parser,
    parse_cfg_options,
    refuse_options,
    require_positive,
)


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = new_parser(prog, __doc__)
    add_config(parser, nargs="?")
    parser.add_argument("--stage", help="only this stage (default: all)")
    parser.add_argument("--workers", type=int, help="worker processes (default: one for each core; 0: none)")
    parser.add_argument("--limit", type=int, help="check only this many records of each data set, the first ones")
    parser.add_argument(
        "--headers-only", action="store_true", help="do not decode the images; incomplete files are then not found"
    )
    parser.add_argument(
        "--out", type=Path, help="the folder for the report (default: work_dirs/<config name>/check_data)"
    )
    parser.add_argument("--ann-file", help="a file in LLaVA's format (JSON or JSON lines), in place of a config")
    parser.add_argument("--image-folder", default="", help="with --ann-file: the folder of the images")
    parser.add_argument("--template", help="with --ann-file: the name of a template, such as vicuna_v1")
    parser.add_argument("--tokenizer", help="with --ann-file: the name or folder of a Hugging Face model")
    parser.add_argument("--max-length", type=int, help="with --ann-file: the most positions of a row")
    parser.add_argument("--image-tokens", type=int, help="with --ann-file: the tokens of an image (default: 576)")
    add_cfg_options(parser)
    return parser


def main() -> None:
    command = parser()
    args = command.parse_args()
    if (args.config is None) == (args.ann_file is None):
        command.error("give a CONFIG or an --ann-file")
    if args.ann_file and not (args.template and args.tokenizer):
        command.error("--ann-file needs --template and --tokenizer")
    of_file = {key: getattr(args, key) for key in ("image_folder", "template", "tokenizer", "max_length")}
    of_file["image_folder"] = of_file["image_folder"] or None
    if args.config:
        refuse_options(of_file | dict(image_tokens=args.image_tokens), "can only be used with --ann-file")
    else:
        refuse_options(dict(stage=args.stage, cfg_options=args.cfg_options), "can only be used with a CONFIG")
    require_positive(dict(limit=args.limit, max_length=args.max_length, image_tokens=args.image_tokens))
    require_positive(dict(workers=args.workers or None))
    from asvr.data.check import default_workers  # here: --help need not wait for torch
    from asvr.engine.check_data import REFUSED, check_sources, sources_of_config, sources_of_file

    if args.config:
        sources = sources_of_config(args.config, args.stage, parse_cfg_options(args.cfg_options))
    else:
        own = dict(of_file, image_folder=args.image_folder, num_image_tokens=args.image_tokens or 576)
        sources = sources_of_file(args.ann_file, **own)
    out = args.out or Path("work_dirs") / Path(args.config or args.ann_file).stem / "check_data"
    workers = default_workers() if args.workers is None else args.workers
    if not check_sources(sources, out=out, workers=workers, limit=args.limit, decode=not args.headers_only):
        sys.exit(REFUSED)
