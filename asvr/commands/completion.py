"""The script that completes commands, options and names of recipes in a shell, made by the package shtab."""

from argparse import ArgumentParser

import shtab

from asvr.base.recipes import list_recipes

# Names of recipes, and files. They are written into the script: no Python starts while you type.
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
    """shell: ``bash`` or ``zsh``. parsers: of every command, by its name."""
    whole = ArgumentParser(prog="asvr")
    whole.add_argument("--version", action="store_true", help="print the version")
    commands = whole.add_subparsers()
    for name, parser in parsers.items():
        summary = parser.description.partition("\n")[0]
        commands.add_parser(name, parents=[parser], add_help=False, help=summary)
    names = " ".join(recipe.name for recipe in list_recipes())
    preamble = {key: text.format(names=names) for key, text in PREAMBLE.items()}
    return shtab.complete(whole, shell=shell, preamble=preamble)
