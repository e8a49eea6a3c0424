"""Starts the commands of ``asvr`` and ``python -m asvr`` by their names."""

import importlib
import sys
from argparse import ArgumentParser

import asvr
from asvr.base.text import nearest
from asvr.commands.cli import run_tool

GROUPS = {
    "Look around": ("list", "show", "plan", "new"),
    "Data": ("check-data", "cache-codes", "scenes"),
    "Train": ("train", "train-tokenizer", "study"),
    "Use a model": ("evaluate", "chat", "demo"),
    "Take it along": ("push", "convert", "check-export"),
}
NAMES = tuple(name for names in GROUPS.values() for name in names)
OLD = dict(eval="evaluate", estimate="plan")  # old names that still work
SHELLS = ("bash", "zsh")
WIDTH = max(map(len, NAMES)) + 2


def module_of(name: str):
    """The module of a command. Its docstring is the help, `parser` makes the arguments, and `main` runs it."""
    return importlib.import_module(f"asvr.commands.{name.replace('-', '_')}")


def summary_of(name: str) -> str:
    """The first line of a command's help."""
    return module_of(name).__doc__.partition("\n")[0].rstrip(".")


def all_parsers() -> dict[str, ArgumentParser]:
    """The parser of every command, in the order of `GROUPS`."""
    return {name: module_of(name).parser(f"asvr {name}") for name in NAMES}


def usage() -> str:
    lines = ["usage: asvr COMMAND ...", "", "More help: asvr COMMAND --help. A first run: asvr train asvr_mini"]
    for group, names in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:<{WIDTH}}{summary_of(name)}" for name in names)]
    options = {
        "-h, --help": "print this help",
        "--version": "print the version",
        "--print-completion SHELL": "print a script that completes commands in bash or zsh:",
        "": 'eval "$(asvr --print-completion bash)"',
    }
    width = max(map(len, options)) + 2
    return "\n".join([*lines, "", "Options:", *(f"  {option:<{width}}{text}" for option, text in options.items())])


def main() -> None:
    """Run the command that ``sys.argv`` names."""
    given = sys.argv[1:]
    if not given or given[0] in ("-h", "--help"):
        print(usage())
    elif given[0] == "--version":
        print(f"asvr {asvr.__version__}")
    elif given[0] == "--print-completion":
        print(_completion(given[1:]))
    else:
        name = OLD.get(given[0], given[0].replace("_", "-"))
        if name not in NAMES:
            _wrong(f"there is no command {given[0]!r}; {nearest(given[0], NAMES)}")
        sys.argv = [f"asvr {name}", *given[1:]]  # argparse shows the first entry as the program
        run_tool(module_of(name).main)


def _completion(shell: list[str]) -> str:
    if len(shell) != 1 or shell[0] not in SHELLS:
        _wrong(f"--print-completion: expected one of {', '.join(SHELLS)}")
    from asvr.commands.completion import script  # here: no other command needs its package

    return script(shell[0], all_parsers())


def _wrong(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)  # argparse uses this code for wrong arguments
