"""Write scenes as LLaVA's JSON and PNG files: python -m asvr scenes OUT [--split photos --scenes 300 …]"""

import argparse
import json
from pathlib import Path

from asvr.data.images import open_image
from asvr.data.scenes import Scenes
from asvr.data.scenes.questions import MAKERS, PHOTO_KINDS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("out", type=Path, help="OUT.json and the folder OUT with the pictures")
    parser.add_argument("--split", default="test", help="train, test or photos")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument(
        "--kinds",
        nargs="*",
        help=f"of question: {', '.join(MAKERS)} (of photos: {', '.join(PHOTO_KINDS)}); default: all",
    )
    parser.add_argument("--concepts", type=int, help="how many of the objects")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = vars(parse_args())
    out: Path = args.pop("out")
    if out.exists() or out.with_suffix(".json").exists():
        raise ValueError(f"{out} or {out.with_suffix('.json')} is there already: name another, or remove it")
    dataset = Scenes(per_scene=None, **args)
    out.mkdir(parents=True, exist_ok=True)
    for i in range(len(dataset.scenes)):
        open_image(dataset.picture(str(i))[1]).save(out / f"{i}.png")
    records = [
        dict(record, id=f"{record['image']}-{record['category']}", image=f"{record['image']}.png")
        for record in dataset.records
    ]
    out.with_suffix(".json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    print(f"written: {len(records)} questions to {out.with_suffix('.json')}, {len(dataset.scenes)} pictures to {out}")
