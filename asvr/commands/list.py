"""List the registered components with their fields, or the recipes.

KIND is a kind of component (encoder, projector, target, loss, dataset ...), `recipes`, or `all` (all components).
PATTERN is a part of a name, or a shell pattern such as '*Loss'.

examples:
  asvr list
  asvr list targets
  asvr list encoder Timm -v
  asvr list recipes vicuna7b
"""

import argparse
import json
import textwrap
from dataclasses import asdict

from asvr.commands.cli import new_parser

WIDTH = 110
RECIPES = "recipes"


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = new_parser(prog, __doc__)
    parser.add_argument("kind", nargs="?", metavar="KIND", help="a kind of component, `recipes`, or `all` (default)")
    parser.add_argument("pattern", nargs="?", metavar="PATTERN", help="only names that match")
    parser.add_argument("-v", "--verbose", action="store_true", help="also show fields, types, defaults and modules")
    parser.add_argument("--all", action="store_true", help="also list components of MMEngine and torch (optimisers)")
    parser.add_argument("--json", action="store_true", help="print records as JSON, with all fields")
    return parser


def main() -> None:
    args = parser().parse_args()
    if args.kind is not None and args.kind.lower() in (RECIPES, "recipe"):
        list_recipes(args)
    else:
        list_components(args)


def list_recipes(args: argparse.Namespace) -> None:
    from asvr.base.recipes import list_recipes

    found = list_recipes(args.pattern)
    if args.json:
        print(json.dumps([dict(asdict(recipe), file=str(recipe.file)) for recipe in found], indent=1))
        return
    folders: dict[str, list] = {}
    for recipe in found:
        folders.setdefault(recipe.name.rpartition("/")[0], []).append(recipe)
    for folder, recipes in folders.items():
        print(f"\n{folder or 'recipes'}: asvr {recipes[0].command} NAME")
        width = max(len(recipe.name) for recipe in recipes) + 2
        for recipe in recipes:
            summary = recipe.summary if args.verbose else textwrap.shorten(recipe.summary, WIDTH, placeholder=" ...")
            print(f"  {recipe.name:<{width}}{summary}")
            if args.verbose:
                print(f"    {recipe.file}")
    if not found:
        print(f"no recipe matches {args.pattern!r}")


def list_components(args: argparse.Namespace) -> None:
    from asvr.recipe.catalog import component_kinds, find_kind, inherited_count, list_components

    kind = None if args.kind in (None, "all") else find_kind(args.kind)
    found = list_components(kind, args.pattern, inherited=args.all)
    if args.json:
        print(json.dumps([asdict(component) for component in found], indent=1, default=_as_json))
        return
    for name, registry in component_kinds().items():
        listed = [component for component in found if component.kind == name]
        further = 0 if args.all or args.pattern or kind not in (None, name) else inherited_count(name)
        if listed or further:
            print(f"\n{name}: {registry.contract}" if args.verbose else f"\n{name}")
            _print(listed, args.verbose)
        if further:
            print(f"  and {further} of MMEngine and torch: asvr list {name} --all")
    if not found and args.pattern:
        print(f"no {'component' if kind is None else kind} matches {args.pattern!r}")
    if kind is None:
        print("\nRecipes: asvr list recipes. To write your own component: asvr new --help")


def _print(components: list, verbose: bool) -> None:
    width = max((len(component.name) for component in components), default=0) + 2
    for component in components:
        print(f"  {component.name:<{width}}{component.summary}".rstrip())
        if verbose:
            print(f"    {component.module}")
            for field in component.fields:
                if not field.injected:
                    _print_field(field)
            injected = [field.name for field in component.fields if field.injected]
            if injected:
                print(f"    given by the library: {', '.join(injected)}")


def _print_field(field) -> None:
    typed = f"{field.name}: {field.type}" if field.type else field.name
    print(f"    {typed} (required)" if field.required else f"    {typed} = {field.default!r}")
    if field.description:
        print(textwrap.fill(field.description, WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8))


def _as_json(value) -> str | None:
    """A default value that JSON does not have, as Python's repr; null if there is no default."""
    from asvr.recipe.catalog import REQUIRED

    return None if value is REQUIRED else repr(value)
