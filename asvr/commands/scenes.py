"""Write generated scenes as LLaVA-format JSON and PNG files.

example:
  asvr scenes my_scenes --split photos --scenes 300 --kinds word count
"""

import argparse
import json
from pathlib import Path

from asvr.commands.cli import new_parser


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = new_parser(prog, __doc__)
    parser.add_argument("out", type=Path, help="the output: OUT.json gets the questions, and the folder OUT the images")
    parser.add_argument("--split", default="test", help="train, test or photos")
    parser.add_argument("--scenes", type=int, default=300, help="the number of scenes (default: 300)")
    parser.add_argument(
        "--kinds",
        nargs="*",
        help="kinds of question (default: all); the error for a wrong kind lists them",
    )
    parser.add_argument("--concepts", type=int, help="the number of kinds of object (default: all)")
    parser.add_argument("--size", type=int, default=128, help="the side of an image in pixels (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the scenes (default: 0)")
    return parser


def main() -> None:
    args = vars(parser().parse_args())
    from asvr.data.images import open_image  # here: --help need not wait for torch
    from asvr.data.scenes import Scenes

    out: Path = args.pop("out")
    if out.exists() or out.with_suffix(".json").exists():
        raise ValueError(f"{out} or {out.with_suffix('.json')} exists already: choose another name, or remove it")
    dataset = Scenes(per_scene=None, **args)
    out.mkdir(parents=True, exist_ok=True)
    for i in range(len(dataset.scenes)):
        open_image(dataset.image(str(i))[1]).save(out / f"{i}.png")
    records = [
        dict(record, id=f"{record['image']}-{record['category']}", image=f"{record['image']}.png")
        for record in dataset.records
    ]
    out.with_suffix(".json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    print(f"written: {len(records)} questions to {out.with_suffix('.json')}, {len(dataset.scenes)} images to {out}")
