"""All commands: ``python -m asvr train CONFIG`` is ``python tools/train.py CONFIG``."""

import importlib
import pkgutil
import sys

from asvr import commands
from asvr.base.text import nearest
from asvr.commands.cli import run_tool

NAMES = [module.name for module in pkgutil.iter_modules(commands.__path__) if module.name != "cli"]


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(f"usage: python -m asvr COMMAND ...; COMMAND --help tells more\ncommands: {', '.join(NAMES)}")
        return
    name = sys.argv.pop(1)
    if name not in NAMES:
        print(f"error: there is no command {name!r}; {nearest(name, NAMES)}", file=sys.stderr)
        sys.exit(2)  # wrong arguments, as argparse ends
    sys.argv[0] = f"asvr {name}"  # what argparse shows as the program
    run_tool(importlib.import_module(f"asvr.commands.{name}").main)


if __name__ == "__main__":
    main()
