"""Write the costs into the pages of docs/methods, from benchmarks/results/methods.json.

python benchmarks/method_pages.py
"""

import argparse
import json
from pathlib import Path

from asvr.base.files import replace_text
from asvr.commands.cli import run_tool

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/methods.json")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs/methods")
    args = parser.parse_args()
    from asvr.profiling.method_pages import pages  # here: --help need not wait for torch

    for page, text in pages(json.loads(args.results.read_text(encoding="utf-8")), args.docs).items():
        replace_text(page, text)
        print(f"wrote {page}")


if __name__ == "__main__":
    run_tool(main)
