"""Check all data of a config before training: every record is read and every image opened.

Several processes do the work. Refused records are reported by reason, with examples. So is what is used but odd (cut
rows, wrong extensions, rotated photos). The folder --out gets every such record (records.jsonl), the counts
(report.json), and histograms of row lengths and image sizes (sizes.png). It needs the text tokenizer and no weights.

Exit code: 0 every record can be used, 3 some are refused, 1 or 2 the config, a whole file or the command is wrong.

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
    parser.add_argument("--workers", type=int, help="processes (default: one a core; 0: this one alone)")
    parser.add_argument("--limit", type=int, help="only the first records of each dataset")
    parser.add_argument(
        "--headers-only", action="store_true", help="do not decode the images: files that are cut off pass"
    )
    parser.add_argument("--out", type=Path, help="default: work_dirs/<config name>/check_data")
    parser.add_argument("--ann-file", help="LLaVA's JSON or JSON lines, in place of a config")
    parser.add_argument("--image-folder", default="")
    parser.add_argument("--template")
    parser.add_argument("--tokenizer", help="a Hugging Face model's name or folder")
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--image-tokens", type=int, help="positions that an image takes (default 576)")
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
        refuse_options(of_file | dict(image_tokens=args.image_tokens), "goes with --ann-file alone")
    else:
        refuse_options(dict(stage=args.stage, cfg_options=args.cfg_options), "goes with a CONFIG alone")
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
