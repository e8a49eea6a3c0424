"""What goes with what: runs the cells of the compatibility matrix and writes docs/compatibility.md and
docs/compatibility.json. Minutes on one CPU core; needs what the tests need.

python benchmarks/compatibility.py
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from asvr.base.files import replace_text
from asvr.commands.cli import run_tool

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="the folder of both files")
    out = parser.parse_args().out
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]  # the cells are those of the tests
    from compatibility_cells import Files
    from compatibility_page import page
    from compatibility_plan import Reader, configs_by_cell, cover
    from compatibility_run import outcome

    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        configs = configs_by_cell(Reader(files))

        def run(cell: dict) -> str:
            begin = time.perf_counter()
            said = outcome(cell, files)
            print(f"{time.perf_counter() - begin:5.2f} s  {', '.join(cell.values())}: {said}", flush=True)
            return said

        found = cover([dict(cell) for cell in configs], run)
    lines = ",\n".join(json.dumps(cell | dict(outcome=said)) for cell, said in found)
    replace_text(out / "compatibility.json", f"[\n{lines}\n]\n")
    replace_text(out / "compatibility.md", page(found, configs))
    print(f"wrote {len(found)} cells to {out / 'compatibility.md'}")


if __name__ == "__main__":
    run_tool(main)
