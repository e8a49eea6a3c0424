"""The README's snippets: Python is executed, commands are parsed by the tools they name."""

import itertools
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from run_helpers import DRY_RUN

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines() if line]


def test_there_are_snippets():
    assert len(PYTHON) >= 3
    assert len(COMMANDS) >= 6


def test_component_snippet_runs():
    import torch

    from asvr.registry import PROJECTORS

    names = {}
    exec(next(code for code in PYTHON if "NormedLinear" in code), names)  # noqa: S102
    try:
        projector = PROJECTORS.build(dict(type="NormedLinear"), default_args=dict(in_width=8, out_width=4))
        assert projector(torch.zeros(2, 3, 8)).shape == (2, 3, 4)
    finally:
        PROJECTORS.module_dict.pop("NormedLinear")


def test_model_snippet_runs(tiny_run, tmp_path, monkeypatch, capsys):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "work_dirs").mkdir()
    (tmp_path / "work_dirs" / "asvr_mini").symlink_to(tiny_run)
    (tmp_path / "models").mkdir()
    for name in ("picture.png", "a.png", "b.png"):
        Image.new("RGB", (64, 64), "red").save(name)
    exec(next(code for code in PYTHON if "asvr.load" in code), {})  # noqa: S102
    assert len(capsys.readouterr().out.splitlines()) >= 2
    assert (tmp_path / "models" / "mine" / "asvr.json").is_file()


def test_stages_with_adapters_are_a_valid_config():
    from asvr.recipe.config import load_config
    from asvr.recipe.validate import check_config

    names = {}
    exec(next(code for code in PYTHON if "Lora" in code), names)  # noqa: S102
    cfg = load_config(ROOT / "configs/asvr_vicuna7b.py")
    cfg.stages = names["stages"]
    check_config(cfg)


def test_reconstruction_snippet_is_a_valid_config():
    from asvr.recipe.config import load_config
    from asvr.recipe.preflight import check_sizes
    from asvr.recipe.recipe import Recipe
    from asvr.recipe.validate import check_config

    names = {}
    exec(next(code for code in PYTHON if code.startswith("reconstruction")), names)  # noqa: S102
    cfg = load_config(ROOT / "configs/llava_vicuna7b.py")
    cfg.model.reconstruction = names["reconstruction"]
    check_config(cfg)
    assert check_sizes(Recipe(cfg))["pretrain"].targets[0].tokenizer.depth == 8


def test_what_the_model_sees_is_a_valid_config():
    from asvr.recipe.components import nested_problems

    code = next(code for code in PYTHON if "AnyRes" in code)
    siglip = dict(type="HFVisionEncoder", name="google/siglip-base-patch16-224")
    entries = []
    for line in code.splitlines():
        names = {}
        exec(line, names)  # noqa: S102
        (entry,) = names["model"].values()
        if "encoders" in entry:
            assert entry["encoders"] == [..., ...]
            entry["encoders"] = [siglip, siglip]
        entries.append(names["model"])
    assert len(entries) == 3 and [problem for entry in entries for problem in nested_problems("model", entry)] == []


def test_own_data_snippet_is_a_valid_config(tmp_path):
    from asvr.recipe.config import load_config
    from asvr.recipe.recipe import Recipe
    from asvr.recipe.validate import check_config

    code = next(code for code in PYTHON if "my_data.py" in code)
    file = tmp_path / "my_data.py"
    file.write_text(code.replace("./asvr_vicuna7b.py", str(ROOT / "configs/asvr_vicuna7b.py")))
    cfg = load_config(file)
    check_config(cfg)
    assert Recipe(cfg).stages["finetune"].data.train.ann_file == "my.jsonl"


def test_mixture_snippet_is_a_valid_config():
    from asvr.recipe.config import load_config
    from asvr.recipe.validate import check_config

    names = {}
    exec(next(code for code in PYTHON if code.startswith("mixture")), names)  # noqa: S102
    cfg = load_config(ROOT / "configs/asvr_vicuna7b.py")
    cfg.stages.finetune.data.train = dict(_delete_=True, **names["mixture"])
    check_config(cfg)


@cache
def usage_of(tool: Path, *subcommand: str) -> str:
    command = [sys.executable, tool, *subcommand, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if "tools/" in c or "benchmarks/" in c])
def test_commands_name_files_and_options_that_exist(command):
    words = shlex.split(command.split("&&")[-1])
    if words[0] == "torchrun":  # what it starts in several processes
        words = ["python", *itertools.dropwhile(lambda word: word != "tools/train.py", words)]
    assert words[0] == "python"
    tool = ROOT / words[1]
    usage = usage_of(tool)
    first = words[2] if len(words) > 2 else None
    made = first is not None and first.startswith("work_dirs/")  # by a command above
    assert first is None or made or (ROOT / first).is_file() or first in usage  # a config, or a subcommand
    if first is not None and not first.startswith("-") and first in usage:
        usage = usage_of(tool, words[2])
    for option in (word for word in words if word.startswith("--")):
        assert option in usage


def test_the_dry_run_is_the_one_that_is_tested():
    (command,) = (c for c in COMMANDS if "--dry-run" in c)
    assert shlex.split(command)[1:] == DRY_RUN  # tests/profiling/test_dry_run.py
