"""How time, memory and FLOPs grow with the visual tokens of an image, the codes, the LLM and the data set.

python benchmarks/growth.py --out benchmarks/results/growth

Time and peak memory of a step are measured at small sizes, FLOPs and planned memory are counted at 7B. The cache of
codes is made of images in a temporary folder. Writes --out.json, .md and .png after each axis.
"""

import argparse
from pathlib import Path

from asvr.commands.cli import run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="of the .json, .md and .png, without suffix")
    parser.add_argument("--counted", type=Path, default=Path("configs/asvr_vicuna7b.py"))
    parser.add_argument("--measured", type=Path, default=Path("configs/benchmarks/growth_asvr.py"))
    parser.add_argument("--samples", type=int, default=8, help="of a step; one in 8 has no image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--axes", nargs="+", metavar="NAME", help="only these, of the names in the result")
    parser.add_argument("--images", nargs="+", type=int, default=[128, 256, 512, 1024], help="of the data sets")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from asvr.profiling.growth import draw, grow, markdown
    from asvr.profiling.growth_data import DATA, caches
    from asvr.profiling.report import save

    text, result = "", {}
    only = None if args.axes is None else [name for name in args.axes if name != DATA]
    steps = [] if only == [] else grow(args.counted, args.measured, samples=args.samples, rounds=args.rounds, only=only)
    for result in steps:
        text = markdown(result)
        save(args.out, result, text)
        draw(result, args.out.with_suffix(".png"))
    if args.axes is None or DATA in args.axes:
        own = caches(args.measured, args.images)
        save(args.out, result | dict(caches=own["rows"], cache_exponents=own["exponents"]), text + "\n" + own["text"])


if __name__ == "__main__":
    run_tool(main)
