"""Import weights of other software, export a model, or show what a checkpoint is.

examples:
  asvr convert show checkpoint.pt
  asvr convert import ASVR-7B models/asvr --text-tokenizer lmsys/vicuna-7b-v1.5
  asvr convert export work_dirs/asvr_vicuna7b models/my_llava
"""

import argparse
from pathlib import Path

from asvr.commands.cli import new_parser


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = new_parser(prog, __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="tell what a checkpoint is, without loading it")
    show.add_argument("source", type=Path, help="a file, or a folder of files")
    load = commands.add_parser("import", help="read a foreign checkpoint and write this library's folder")
    load.add_argument("source", type=Path, help="a file, or a folder of files")
    load.add_argument("out", type=Path, help="a new folder")
    load.add_argument("--heads", type=int, help="attention heads of a SigLIP tower that is of no published size")
    load.add_argument("--tower", help="published name of a DualToken's tower, such as siglip-so400m-patch14-384")
    load.add_argument("--branch", help="of a DualToken tokenizer: semantic (default) or appearance")
    load.add_argument("--depth", type=int, help="of residual codes whose shared codebook was saved once")
    load.add_argument("--image-size", type=int, help="side of a VQGAN's input in pixels (default 256)")
    load.add_argument("--encoder", help="of a LLaVA checkpoint: the tower's folder or name")
    load.add_argument("--text-tokenizer", help="a folder or name; default: the source folder, where it has one")
    load.add_argument("--template", help="the template that a model was trained with (default vicuna_v1)")
    load.add_argument("--image-aspect", help="square (default), pad or resize")
    save = commands.add_parser("export", help="write a trained model for other software")
    save.add_argument("source", type=Path, help="a finished run's work dir, or a folder that save_pretrained wrote")
    save.add_argument("out", type=Path, help="a new folder")
    save.add_argument("--format", default="llava", choices=("llava", "asvr"))
    save.add_argument("--stage", help="of a work dir; default: the last")
    save.add_argument("--trust-custom-imports", action="store_true", help="run the modules that a saved model names")
    save.add_argument("--image-aspect", help="replaces the one of training")
    save.add_argument("--template", help="replaces the one of training")
    return parser


def main() -> None:
    args = parser().parse_args()
    from asvr.interchange import convert  # here: --help need not wait for torch

    options = {key: value for key, value in vars(args).items() if key != "command"}
    print(
        {"show": convert.show, "import": convert.import_checkpoint, "export": convert.export}[args.command](**options)
    )
