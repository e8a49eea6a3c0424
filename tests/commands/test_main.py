"""The program asvr: its commands, their help, completion, and names of recipes in place of files."""

import json
import pkgutil
import runpy
import shlex
import shutil
import subprocess
import sys

import pytest
from run_helpers import ROOT, tiny_env

import asvr
from asvr import commands
from asvr.commands.completion import script
from asvr.commands.main import GROUPS, NAMES, OLD, all_parsers, module_of

SHARED = {"cli", "main", "completion"}  # modules of asvr/commands that are no commands


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    """Run ``python -m asvr ARGUMENTS`` in this process; its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int | str, str, str]:
        monkeypatch.setattr(sys, "argv", ["asvr", *arguments])
        code = 0
        try:
            runpy.run_module("asvr", run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_every_command_with_one_line(arguments, program):
    code, said, _ = program(*arguments)
    lines = said.splitlines()
    assert code == 0 and lines[0] == "usage: asvr COMMAND ..."
    for group, names in GROUPS.items():
        assert f"{group}:" in lines
        for name in names:
            (line,) = [line.split(maxsplit=1) for line in lines if line.startswith(f"  {name} ")]
            assert 20 < len(line[1]) < 110
    modules = {module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__)}
    assert modules - SHARED == set(NAMES)


def test_each_command_says_what_it_does_with_an_example_that_parses():
    for name, parser in all_parsers().items():
        text = parser.format_help()
        assert text.startswith(f"usage: asvr {name} ")
        lines = [line for line in text.splitlines() if line.startswith(f"  asvr {name}")]
        examples = [words for line in lines if (words := shlex.split(line, comments=True))[1] == name]
        assert examples, f"{name} has no example"
        for example in examples:
            parser.parse_args(example[2:])  # exits where it does not parse


@pytest.mark.parametrize("tool", sorted(file.stem for file in (ROOT / "tools").glob("*.py")))
def test_a_tool_is_the_command_of_its_name(tool):
    main = runpy.run_path(str(ROOT / "tools" / f"{tool}.py"))["main"]
    assert main is module_of(OLD.get(tool, tool)).main


@pytest.mark.parametrize("name", ["eval", "estimate", "check_data", "cache_codes", "train_tokenizer"])
def test_old_names_go_on_working(name, program):
    code, said, _ = program(name, "--help")
    assert code == 0 and said.startswith(f"usage: asvr {OLD.get(name, name.replace('_', '-'))} ")


def test_the_version(program):
    assert program("--version") == (0, f"asvr {asvr.__version__}\n", "")


def test_help_is_light():
    code = (
        "import sys, runpy\nsys.argv = ['asvr', *sys.argv[1:]]\n"
        "try:\n    runpy.run_module('asvr', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print('loaded', *(m for m in ('torch', 'mmengine', 'numpy', 'PIL') if m in sys.modules))"
    )
    for arguments in ([], ["scenes", "--help"], ["list", "recipes"], ["--print-completion", "bash"]):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=tiny_env(), capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == "loaded", done.stderr


def test_a_completion_knows_commands_options_and_recipes(program):
    code, bash, _ = program("--print-completion", "bash")
    assert code == 0 and bash == script("bash", all_parsers()) + "\n"
    for shell in ("bash", "zsh"):
        assert all(word in script(shell, all_parsers()) for word in (*NAMES, "--dry-run", "targets/scenes/asvr"))
    code, said, errors = program("--print-completion", "fish")
    assert (code, said) == (2, "") and "expected one of bash, zsh" in errors


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_and_recipes(tmp_path):
    (tmp_path / "asvr.sh").write_text(script("bash", all_parsers()))

    def completed(*words: str) -> set[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        code = f"""source asvr.sh; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}
            _shtab_asvr asvr "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"
            printf '%s\\n' "${{COMPREPLY[@]}}\""""
        return set(subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True).stdout.split())

    assert completed("asvr", "tra") == {"train", "train-tokenizer"}
    assert "asvr_vicuna7b" in completed("asvr", "train", "asvr_vi")


def test_components_and_recipes_are_listed(program):
    code, said, _ = program("list", "losses", "l1")
    assert code == 0 and [line.split()[0] for line in said.splitlines() if line] == ["loss", "L1Loss", "SmoothL1Loss"]
    _, said, _ = program("list", "encoder", "TimmEncoder", "-v")
    assert "    model: str (required)\n        timm's model name.\n" in said and "    layer: int = -1\n" in said
    assert "    given by the library: load_weights\n" in said
    _, said, _ = program("list", "recipes", "targets/scenes/v")
    assert [line.split()[0] for line in said.splitlines() if line] == [
        "targets/scenes:",
        "targets/scenes/vdep",
        "targets/scenes/viral",
    ]
    _, said, _ = program("list", "optimizer")
    assert "Muon" in said and "SGD" not in said and "of MMEngine and torch: asvr list optimizer --all" in said
    assert program("list", "encodr")[0].startswith("error: there is no kind of component 'encodr'; did you mean 'enc")


def test_a_list_as_json_has_all_fields(program):
    _, said, _ = program("list", "projector", "--json")
    records = {record["name"]: record for record in json.loads(said)}
    fields = {field["name"]: field for field in records["MLPProjector"]["fields"]}
    assert fields["layers"]["default"] == 2 and fields["in_width"]["injected"] and fields["in_width"]["default"] is None
    _, said, _ = program("list", "recipes", "asvr_mini", "--json")
    assert [recipe["file"] for recipe in json.loads(said)] == [str(ROOT / "configs/asvr_mini.py")]


def test_a_recipe_is_named_from_anywhere(program):
    code, *_ = program("show", "small_asvr", "--stage", "none")
    assert "the config has no stage 'none'" in code
    assert program("train", "asvr_mni")[0].startswith(
        "error: there is no config file and no recipe 'asvr_mni'; did you mean 'asvr_mini'"
    )
    code, *_ = program("evaluate", "asvr_mini")
    assert "not finished in work_dirs/asvr_mini" in code
    assert program("study", "targets_min")[0].startswith("error: there is no study file and no recipe 'targets_min'")
