"""Write a new component of your own that works, with a config that trains it and a test.

KIND is target, encoder, projector, loss, dataset or metric. NAME is its class, such as EdgeMaps. Three files are
written: edge_maps.py (the component), edge_maps_mini.py (the mini recipe with it) and test_edge_maps.py. Change the
component step by step, and run the test after each step.

examples:
  asvr new encoder EdgeMaps
  asvr new loss OwnLoss --out my_project
"""

import argparse
import ast
import importlib.util
import keyword
import re
from pathlib import Path

from asvr.commands.cli import new_parser

SKELETONS = Path(__file__).parent / "skeletons"
KINDS = ("target", "encoder", "projector", "loss", "dataset", "metric")
CLASS, MODULE = "MyComponent", "my_component"  # placeholders in the skeletons, which NAME replaces
OWN_DATA = ("dataset",)  # kinds whose config does not use the recipe's data


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = new_parser(prog, __doc__)
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("name", metavar="NAME", help="a class name, such as EdgeMaps")
    parser.add_argument("--out", type=Path, default=Path(), help="the folder to write to (default: this one)")
    return parser


def main() -> None:
    args = parser().parse_args()
    name, module = check_name(args.kind, args.name)
    written = write(args.kind, name, module, args.out)
    folder = [] if args.out == Path() else [f"  cd {args.out}"]
    commands = [f"  pytest {written[2]}", f"  asvr show {written[1]}", f"  asvr train {written[1]}"]
    print(f"written: {', '.join(written)}", "next:", *folder, *commands, sep="\n")


def check_name(kind: str, given: str) -> tuple[str, str]:
    """Return the names of the class and of its module. Raises ``ValueError`` for a name that cannot be used."""
    name = "".join(part[:1].upper() + part[1:] for part in given.split("_"))
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", given) or any(map(keyword.iskeyword, (name, given, module))):
        raise ValueError(f"NAME {given!r}: expected a class name of letters and digits, such as EdgeMaps")
    if importlib.util.find_spec(module) is not None and not Path(f"{module}.py").exists():
        raise ValueError(f"NAME {given!r}: its file {module}.py would hide the module {module!r}; choose another name")
    from asvr.recipe.catalog import component_kinds  # here: --help need not wait for torch

    if name in component_kinds()[kind].module_dict:
        raise ValueError(f"NAME {given!r}: a {kind} {name} exists already; choose another name")
    if name in _names_in(SKELETONS / kind):
        raise ValueError(f"NAME {given!r}: the skeleton uses {name} for something else; choose another name")
    return name, module


def write(kind: str, name: str, module: str, out: Path) -> list[str]:
    """Write the three files into a folder, and return their names. Raises ``ValueError`` if a file exists already."""
    own = SKELETONS / kind
    texts = {
        f"{module}.py": _text(own / "component.py"),
        f"{module}_mini.py": _text(own / "config.py")
        + ("" if kind in OWN_DATA else "\n" + _text(SKELETONS / "small.py")),
        f"test_{module}.py": _text(own / "test.py"),
    }
    for file in texts:
        if (out / file).exists():
            raise ValueError(f"{out / file} exists already: choose another name, or another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        (out / file).write_text(text.replace(CLASS, name).replace(MODULE, module), encoding="utf-8")
    return list(texts)


def _names_in(skeleton: Path) -> set[str]:
    """All names that the code of a skeleton uses, but that of its own class."""
    nodes = [node for file in skeleton.glob("*.py") for node in ast.walk(ast.parse(_text(file)))]
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    return (used | {node.name for node in nodes if isinstance(node, ast.alias)}) - {CLASS}


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")
