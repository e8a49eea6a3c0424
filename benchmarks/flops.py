"""FLOPs of a config on the meta device, by part and stage: by fvcore, by formula and by torch's own counter.

python benchmarks/flops.py CONFIG                     forward and training
python benchmarks/flops.py CONFIG --against CONFIG2   and what CONFIG adds to CONFIG2 (FLOPs, parameters, memory)

The formulas are in asvr/flops/analytic.py.
"""

import argparse
from pathlib import Path

from asvr.commands.cli import add_cfg_options, parse_cfg_options, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("--against", help="the same model with fewer targets, such as configs/llava_vicuna7b.py")
    parser.add_argument("--text-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, help="of the .json and .md, without suffix")
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from asvr.flops.count import Sample
    from asvr.profiling.report import (
        added,
        added_in_words,
        flops_report,
        markdown,
        memory_bytes,
        paper_ratio,
        save,
    )
    from asvr.recipe.config import load_config  # here: --help need not wait for torch

    options = parse_cfg_options(args.cfg_options)
    cfg = load_config(args.config, options)
    report = flops_report(cfg, Sample(args.text_tokens))
    report["of_the_papers_flops"] = paper_ratio(report)
    text = markdown(report)
    if args.against:
        other = load_config(args.against, options)
        report["added"] = added(report, flops_report(other, Sample(args.text_tokens)))
        own, theirs = memory_bytes(cfg), memory_bytes(other)
        report["added"]["memory"] = {name: 100 * (own[name] / theirs[name] - 1) for name in own}
        text += f"\n{args.config} adds to {args.against} {added_in_words(report['added'])}\n"
    ratio = report["of_the_papers_flops"]
    text += (
        "\nOver 665,298 samples, against the 1.53e19 FLOPs of the paper's tables: "
        + ", ".join(f"{value:.2f} x ({name.replace('_', ' ')})" for name, value in ratio.items())
        + "\n"
    )
    save(args.out, report, text)


if __name__ == "__main__":
    run_tool(main)
