"""docs/reference/cli.md: every command with its arguments, from the parsers."""

import argparse
import re

from _pages.tables import page, plain, table
from asvr.commands.main import GROUPS, OLD, all_parsers

INTRO = """`asvr COMMAND ...` and `python -m asvr COMMAND ...` are the same. `asvr --help` lists the commands, and
`asvr COMMAND --help` prints what this page has. The files in [tools/](../../tools) start the same commands."""

COMPLETION = """`eval "$(asvr --print-completion bash)"` completes commands, options and recipes in bash. For zsh, write
`zsh` in place of `bash`."""


def cli_page() -> str:
    parsers = all_parsers()
    blocks = []
    for group, names in GROUPS.items():
        blocks += [f"## {group}", *(block for name in names for block in _command(f"asvr {name}", parsers[name]))]
    old = ", ".join(f"`asvr {old}` for `asvr {new}`" for old, new in OLD.items())
    return page(
        "# Command line", INTRO, *blocks, "## Completion and old names", COMPLETION, f"These names still work: {old}."
    )


def _command(name: str, parser: argparse.ArgumentParser) -> list[str]:
    """Its docstring, a table of its arguments, and the same for each command inside it."""
    text, *examples = re.split(r"\nexamples?:\n", (parser.description or "").strip(), maxsplit=1)
    blocks = [f"### `{name}`", plain(text.strip()), *map(_block, examples)]
    blocks += _arguments(parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            said = {choice.dest: choice.help for choice in action._choices_actions}
            for inner, own in action.choices.items():
                blocks += [f"#### `{name} {inner}`", f"{(said.get(inner) or '').capitalize()}.", *_arguments(own)]
    return blocks + ([plain(parser.epilog.strip())] if parser.epilog else [])


def _block(text: str) -> str:
    return "\n".join(["```bash", *(line.strip() for line in text.strip().splitlines()), "```"])


def _arguments(parser: argparse.ArgumentParser) -> list[str]:
    rows = [_row(action) for action in parser._actions if not isinstance(action, _NOT_SHOWN)]
    return [table(("argument", "default", "meaning"), rows)] if rows else []


_NOT_SHOWN = (argparse._HelpAction, argparse._SubParsersAction)


def _row(action: argparse.Action) -> list[str]:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    shown = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    if action.option_strings and action.nargs != 0:
        shown += f" {value if isinstance(value, str) else ' '.join(value)}" + " ..." * (action.nargs in ("+", "*"))
    said = action.default not in (None, False, [], "") and action.nargs != 0
    default = "required" if action.required else f"`{action.default}`" if said else ""
    meaning = (
        (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    )  # as argparse prints it
    return [f"`{shown}`", default, meaning]
