"""Time and memory of a training step with random weights and synthetic samples (lengths as in LLaVA's data).

python benchmarks/throughput.py CONFIG                    one configuration
python benchmarks/throughput.py CONFIG --against CONFIG2  two or more, in turn, in one run
python benchmarks/throughput.py CONFIG --plain            against the released code's way of doing the same step
python benchmarks/throughput.py CONFIG --transformers     against transformers' LLaVA; CONFIG has no target
python benchmarks/throughput.py CONFIG --against CONFIG2 --plain                                   against both

Writes JSON, a table and an image to --out (default: work_dirs/benchmarks/<name>).
"""

import argparse
from functools import partial
from pathlib import Path

from asvr.commands.cli import add_cfg_options, parse_cfg_options, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="CONFIG", help="other configs, measured in turn with the first"
    )
    parser.add_argument("--plain", action="store_true", help="the same config as the released code would run it")
    parser.add_argument("--transformers", action="store_true", help="the same config as transformers' LLaVA")
    parser.add_argument("--stage", help="default: the last")
    parser.add_argument("--codes", default="cached", choices=("cached", "online"), help="of the first config")
    parser.add_argument(
        "--features",
        default="online",
        choices=("cached", "online"),
        help="cached: as with data.cache=True, which computes the frozen encoder once, before training; --plain and "
        "--transformers compute it in each step",
    )
    parser.add_argument("--samples", type=int, default=8, help="of a step; fewer where memory runs out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="of each side in a round")
    parser.add_argument(
        "--plain-keeps-memory",
        action="store_true",
        help="let --plain and --transformers keep freed memory too",
    )
    parser.add_argument("--out", type=Path, help="of the .json, .md and .png, without suffix")
    add_cfg_options(parser)
    parser.add_argument(
        "--other-options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the last side alone"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from asvr.profiling.throughput import Side, compare, markdown, write
    from asvr.profiling.worker import OWN, PLAIN, TRANSFORMERS
    from asvr.recipe.config import load_config  # here: --help need not wait for torch
    from asvr.recipe.recipe import Recipe

    shared, own = parse_cfg_options(args.cfg_options), parse_cfg_options(args.other_options, "--other-options")
    implementations = [name for name, asked in ((PLAIN, args.plain), (TRANSFORMERS, args.transformers)) if asked]
    if own and not (implementations or args.against):
        raise ValueError("--other-options: there is no second side; give --plain, --transformers or --against too")

    def side(path: str, name: str, *, implementation: str = OWN, codes: str = "cached", options: dict = shared) -> Side:
        stage = Recipe(load_config(path, options)).stage(args.stage)
        cached = implementation == OWN and args.features == "cached"
        if cached and "encoder" in stage.trained_components:
            raise ValueError(f"--features cached: stage {stage.name!r} of {path} trains the encoder")
        spec = dict(
            config=path,
            cfg_options=options,
            stage=args.stage,
            implementation=implementation,
            codes=codes,
            cached_features=cached,
            precision=stage.optim.precision,
        )
        return Side(name, dict(spec, keep_memory=implementation == OWN or args.plain_keeps_memory))

    for name in ("samples", "rounds", "steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: expected at least 1")
    if args.features == "cached" and args.codes == "online":
        raise ValueError("--features cached: needs --codes cached, as data.cache=True keeps both")
    stem = Path(args.config).stem
    sides = [side(args.config, f"{stem}, {args.codes} codes", codes=args.codes)]
    others = [(path, Path(path).stem, OWN) for path in args.against]
    others += [(args.config, f"{stem}, {implementation}", implementation) for implementation in implementations]
    for number, (path, name, implementation) in enumerate(others, 1):
        last = bool(own) and number == len(others)
        name += f" ({', '.join(args.other_options)})" if last else ""
        sides.append(side(path, name, implementation=implementation, options=shared | own if last else shared))
    if len({side.name for side in sides}) < len(sides):
        raise ValueError("--against: two sides have the same name: give configs with different file names")
    out = args.out or Path("work_dirs/benchmarks") / stem
    keep = partial(write, out=out)
    print(markdown(compare(sides, samples=args.samples, rounds=args.rounds, steps=args.steps, keep=keep)))


if __name__ == "__main__":
    run_tool(main)
