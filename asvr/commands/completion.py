"""Makes the script that completes commands, options and recipe names in a shell, with the package shtab."""

from argparse import ArgumentParser

import shtab

from asvr.base.recipes import list_recipes

# Complete names of recipes, and files. The names are written into the script, so no Python starts while you type.
PREAMBLE = {
    "bash": """\
_asvr_configs() {{
  compgen -W "{names}" -- "$1"
  compgen -f -X '!*.py' -- "$1"
  compgen -d -S / -- "$1"
}}
""",
    "zsh": """\
_asvr_configs() {{
  _alternative 'recipes:recipe:({names})' 'files:file:_files'
}}
""",
}


def script(shell: str, parsers: dict[str, ArgumentParser]) -> str:
    """Make the script. shell: ``bash`` or ``zsh``. parsers: the parser of every command, by its name."""
    top = ArgumentParser(prog="asvr")
    top.add_argument("--version", action="store_true", help="print the version")
    commands = top.add_subparsers()
    for name, parser in parsers.items():
        summary = parser.description.partition("\n")[0]
        commands.add_parser(name, parents=[parser], add_help=False, help=summary)
    names = " ".join(recipe.name for recipe in list_recipes())
    preamble = {key: text.format(names=names) for key, text in PREAMBLE.items()}
    return shtab.complete(top, shell=shell, preamble=preamble)
