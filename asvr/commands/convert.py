"""Import weights of other software, export a model, or show what a checkpoint contains.

examples:
  asvr convert show checkpoint.pt
  asvr convert import ASVR-7B models/asvr --text-tokenizer lmsys/vicuna-7b-v1.5
  asvr convert export work_dirs/asvr_vicuna7b models/my_llava
"""

import argparse
from pathlib import Path

from asvr.commands.cli import add_trust, new_parser


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = new_parser(prog, __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="say what a checkpoint contains, without loading it")
    show.add_argument("source", type=Path, help="a file, or a folder of files")
    load = commands.add_parser("import", help="read a checkpoint of other software, and write a folder of this library")
    load.add_argument("source", type=Path, help="a file, or a folder of files")
    load.add_argument("out", type=Path, help="a new folder")
    load.add_argument(
        "--heads", type=int, help="the number of attention heads, for a SigLIP tower without a published size"
    )
    load.add_argument(
        "--tower", help="for DualToken: the published name of its tower, such as siglip-so400m-patch14-384"
    )
    load.add_argument("--branch", help="for DualToken: semantic (default) or appearance")
    load.add_argument("--depth", type=int, help="the number of depths, for residual codes with one shared codebook")
    load.add_argument("--image-size", type=int, help="for a VQGAN: the side of its input in pixels (default: 256)")
    load.add_argument("--encoder", help="for LLaVA: the name or folder of its vision tower")
    load.add_argument(
        "--text-tokenizer", help="the name or folder of the text tokenizer (default: the source folder, if it has one)"
    )
    load.add_argument("--template", help="the template that the model was trained with (default: vicuna_v1)")
    load.add_argument("--image-aspect", help="square (default), pad or resize")
    save = commands.add_parser("export", help="write a trained model for other software")
    save.add_argument("source", type=Path, help="a finished run's work dir, a saved model, or org/name of the Hub")
    save.add_argument("out", type=Path, help="a new folder")
    save.add_argument(
        "--format",
        default="llava",
        choices=("llava", "asvr"),
        help="llava (default): for transformers, vLLM and SGLang; asvr: this library's own format",
    )
    save.add_argument("--stage", help="the stage to load from a work dir (default: the last)")
    add_trust(save)
    save.add_argument("--image-aspect", help="use this value in place of the one from training")
    save.add_argument("--template", help="use this template in place of the one from training")
    return parser


def main() -> None:
    args = parser().parse_args()
    from asvr.interchange import convert  # here: --help need not wait for torch

    options = {key: value for key, value in vars(args).items() if key != "command"}
    print(
        {"show": convert.show, "import": convert.import_checkpoint, "export": convert.export}[args.command](**options)
    )
