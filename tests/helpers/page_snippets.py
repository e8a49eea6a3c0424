"""Runs the Python blocks of a Markdown page, and parses its commands, as a reader would use them.

A block whose first line is only the name of a file (`# my_target.py`) is written there and imported. A block with
`_base_ =` is a config: it is loaded and checked. Any other block is executed. The blocks of a page run in their order,
in one namespace and one folder, which has `configs/` and `examples/` as a clone has. Sections of a config that a block
sets (`optim = dict(...)`) may be incomplete, but what they hold must be right.
"""

import argparse
import ast
import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

import asvr.registry
from asvr.__main__ import main
from asvr.base.log_once import forget
from asvr.recipe.components import NESTED, nested_problems
from asvr.recipe.config import load_config
from asvr.recipe.validate import BY_STAGE, ONCE, check_config, check_section
from asvr.registry import FullRegistry

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "configs/README.md", "benchmarks/README.md", "examples/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
REGISTRIES = [value for value in vars(asvr.registry).values() if isinstance(value, FullRegistry)]
OWN_FOLDERS = ("asvr/", "benchmarks/", "configs/", "docs/", "examples/", "tests/", "tools/")
_FILE = re.compile(r"# ([\w/.-]+\.py)\n")
_NAMED = re.compile(r"# ([\w/.-]+\.py)\b")
_IMAGE = re.compile(r"""["']([\w./-]+\.(?:png|jpe?g|webp))["']""")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


class Reader:
    """A reader of one page. folder: an empty one. What is registered and imported is taken out again by `leave`."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch):
        self.folder, self.names = folder, dict(__name__="page")
        (folder / "configs").mkdir()
        for entry in (ROOT / "configs").iterdir():
            (folder / "configs" / entry.name).symlink_to(entry)
        (folder / "examples").symlink_to(ROOT / "examples")
        (folder / "models").mkdir()
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        self._modules, self._registered = set(sys.modules), [set(registry.module_dict) for registry in REGISTRIES]

    def run(self, code: str) -> None:
        for name in _IMAGE.findall(code):
            if not name.startswith("/") and not (self.folder / name).exists():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (64, 64), "red").save(self.folder / name)
        if re.search(r"^_base_ = ", code, re.M):
            check_config(load_config(self._config_file(code)))
        elif named := _FILE.match(code):
            self._write(named[1], code)
            module = importlib.import_module(named[1].removesuffix(".py").replace("/", "."))
            self.names |= {name: value for name, value in vars(module).items() if not name.startswith("__")}
        else:
            exec(code, self.names)  # noqa: S102
            if problems := self._problems(code):
                raise AssertionError("\n".join(problems))

    def leave(self) -> None:
        for registry, names in zip(REGISTRIES, self._registered, strict=True):
            for added in registry.module_dict.keys() - names:
                registry.module_dict.pop(added)
        for name in sys.modules.keys() - self._modules:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(self.folder)):
                del sys.modules[name]
        forget()

    def _write(self, name: str, code: str) -> Path:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code, encoding="utf-8")
        importlib.invalidate_caches()
        return file

    def _config_file(self, code: str) -> Path:
        """In the folder from which its bases are found."""
        base = re.search(r"""^_base_ = \[?["']([^"']+)""", code, re.M)[1]
        named = _NAMED.match(code)
        name = named[1] if named else "snippet.py"
        here = (self.folder / name).parent / base
        return self._write(name if here.is_file() else f"configs/{Path(name).name}", code)

    def _problems(self, code: str) -> list[str]:
        """Of the sections, and the parts of a model, that a block sets."""
        found = []
        for node in ast.parse(code).body:
            for target in node.targets if isinstance(node, ast.Assign) else ():
                name = target.id if isinstance(target, ast.Name) else ""
                found += _problems_of(name, _plain(self.names.get(name)))
        return [problem for problem in found if not re.search(r" is missing|expected either|Ellipsis", problem)]


def _problems_of(name: str, value: object) -> list[str]:
    if not isinstance(value, dict | list):
        return []
    if name == "stages":
        return [problem for stage in value.values() for key in stage for problem in _problems_of(key, stage[key])]
    if name in NESTED or name == "reconstruction":
        return nested_problems("model", {name: value})
    return check_section(name, value) if name in (*ONCE, *BY_STAGE) else []


def _plain(value: object) -> object:
    """Without `_delete_`, which MMEngine takes out when it merges."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key != "_delete_"}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def commands(page: Path) -> list[str]:
    """Lines of bash blocks that start python, asvr or torchrun, with continued lines joined."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in re.split(r"&&|\|\||;| \| ", line)]
    return [
        part
        for part in parts
        if re.match(r"([A-Z_0-9]+=\S* )*(srun |accelerate launch )?(python|asvr|torchrun)\b", part)
    ]


class _Parsed(BaseException):
    """Raised where a command has read its arguments."""


def parse(command: str, patch: pytest.MonkeyPatch) -> argparse.Namespace | None:
    """What a command reads from its arguments, without running it; `SystemExit` if they are wrong. None: it has no
    parser."""
    words = shlex.split(command, comments=True)
    start = next(i for i, word in enumerate(words) if word in ("python", "asvr", "torchrun"))
    words = words[start:]
    if words[0] == "torchrun":
        script = next(i for i, word in enumerate(words) if word.endswith(".py") or word == "-m")
        words = ["python", *words[script:]]
    read = argparse.ArgumentParser.parse_args

    def stop(parser, *args, **kwargs):
        raise _Parsed(read(parser, *args, **kwargs))

    patch.setattr(argparse.ArgumentParser, "parse_args", stop)
    try:
        if words[:3] == ["python", "-m", "asvr"] or words[0] == "asvr":
            patch.setattr(sys, "argv", ["asvr", *words[3 if words[0] == "python" else 1 :]])
            main()
        elif words[1].startswith(OWN_FOLDERS):
            patch.setattr(sys, "argv", [str(ROOT / words[1]), *words[2:]])
            patch.syspath_prepend((ROOT / words[1]).parent)
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    except _Parsed as parsed:
        return parsed.args[0]
    return None


def missing_files(command: str, written: set[str]) -> list[str]:
    """Words of a command that name a file or a recipe of the repository which is not there. written: by the page."""
    words = shlex.split(command, comments=True)
    named = [word for before, word in zip(words, words[1:], strict=False) if before not in ("--out", "--work-dir")]
    named = [word.partition("=")[2] or word for word in named]
    named = [word for word in named if word.startswith(OWN_FOLDERS) and word not in written]
    named = [word for word in named if not (ROOT / f"configs/{word}.py").is_file()]  # a recipe, examples/lora
    return [word for word in named if not any(ROOT.glob(word.rstrip("/")))]
