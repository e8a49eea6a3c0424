"""Which config is which row of the paper's tables, with the paper's numbers: writes docs/paper.md.

python benchmarks/paper_rows.py
"""

import argparse
from pathlib import Path

from asvr.base.files import replace_text
from asvr.commands.cli import run_tool

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "paper.md")
    out = parser.parse_args().out
    from asvr.benchmarks.paper_rows import page  # here: --help need not wait for torch

    replace_text(out, page(ROOT / "configs" / "paper"))
    print(f"wrote {out}")


if __name__ == "__main__":
    run_tool(main)
