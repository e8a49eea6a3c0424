"""Writes the pages of the documentation that come from the code, or checks them.

python docs/generate.py [--check] [PAGE ...]

Without PAGE, all pages. zoo.json has the sizes of all recipes: `python docs/generate.py zoo.json zoo.md` counts those
that have changed, at ten seconds each, and writes the page.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

from _pages.cli import cli_page  # noqa: E402  the two folders above must be known first
from _pages.components import components_page  # noqa: E402
from _pages.config import config_page  # noqa: E402
from _pages.zoo import count_zoo, zoo_page  # noqa: E402

from asvr.base.files import replace_text  # noqa: E402

PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": cli_page,
    "reference/components.md": components_page,
    "reference/config.md": config_page,
    "zoo.md": zoo_page,
}
SIZES = "zoo.json"


def main() -> int:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"one of {', '.join((*PAGES, SIZES))}")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is not up to date")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.pages if name not in (*PAGES, SIZES)]:
        parser.error(f"{unknown[0]} is not generated: expected {', '.join((*PAGES, SIZES))}")
    if arguments.check and SIZES in arguments.pages:
        parser.error(f"--check takes pages; tests/docs/test_zoo.py checks {SIZES}")
    if SIZES in arguments.pages:
        count_zoo()
    outdated = []
    for name in arguments.pages or PAGES:
        if name == SIZES:
            continue
        file, text = DOCS / name, PAGES[name]()
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            outdated.append(name)
            if not arguments.check:
                replace_text(file, text)
                print(f"wrote docs/{name}")
    if arguments.check and outdated:
        print(f"not up to date: {', '.join(outdated)}; run python docs/generate.py {' '.join(outdated)}")
    return int(arguments.check and bool(outdated))


if __name__ == "__main__":
    sys.exit(main())
