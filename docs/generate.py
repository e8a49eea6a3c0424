"""Writes the pages of the documentation that come from the code, or checks them.

python docs/generate.py [--check] [PAGE ...]

Without PAGE, all but zoo.json, the sizes of all recipes, which take minutes.
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
from _pages.zoo import zoo_numbers, zoo_page  # noqa: E402

from asvr.base.files import replace_text  # noqa: E402

PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": cli_page,
    "reference/components.md": components_page,
    "reference/config.md": config_page,
    "zoo.md": zoo_page,
}
SLOW: dict[str, Callable[[], str]] = {"zoo.json": zoo_numbers}


def main() -> int:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"one of {', '.join(PAGES | SLOW)}")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is not up to date")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.pages if name not in PAGES | SLOW]:
        parser.error(f"{unknown[0]} is not generated: expected {', '.join(PAGES | SLOW)}")
    outdated = []
    for name in arguments.pages or PAGES:
        file, text = DOCS / name, (PAGES | SLOW)[name]()
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
