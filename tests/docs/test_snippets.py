"""Every Python block of every page runs, and every command is one that its tool takes."""

import contextlib
import re

import pytest
from page_snippets import PAGES, ROOT, Reader, blocks, commands, missing_files, parse

from asvr.base.recipes import config_file

NAME = {str(page.relative_to(ROOT)): page for page in PAGES}


@pytest.fixture
def reader(tmp_path, monkeypatch):
    reader = Reader(tmp_path, monkeypatch)
    yield reader
    reader.leave()


@pytest.mark.parametrize("name", [name for name, page in NAME.items() if blocks(page, "python")])
def test_python_blocks_run(name, reader, request, capsys):
    code = blocks(NAME[name], "python")
    if any("work_dirs/asvr_mini" in block for block in code):  # the run that the page's commands would have made
        (reader.folder / "work_dirs").mkdir()
        (reader.folder / "work_dirs/asvr_mini").symlink_to(request.getfixturevalue("tiny_run"))
    for block in code:
        try:
            reader.run(block)
        except ValueError as error:
            for package in re.findall(r" needs (\w+): pip install \1$", str(error), re.M):
                pytest.importorskip(package, reason=f"{package} is not installed")
            raise


@pytest.mark.parametrize("name", [name for name, page in NAME.items() if commands(page)])
def test_commands_are_read_by_what_they_start(name, monkeypatch, capsys):
    page = NAME[name]
    written = set(re.findall(r"^```python\n# ([\w/.-]+\.py)\b", page.read_text(encoding="utf-8"), re.M))
    wrong = []
    for command in commands(page):
        try:
            with monkeypatch.context() as patch:
                read = parse(command, patch)
            config = getattr(read, "config", None)
            if config is not None and not str(config).endswith(".py"):  # a recipe by its name
                config_file(config)
        except (SystemExit, ValueError, OSError) as error:
            wrong.append(f"{command}: {capsys.readouterr().err.strip().rpartition('error: ')[2] or error}")
        wrong += [f"{command}: there is no {file}" for file in missing_files(command, written)]
    assert wrong == []


def test_a_wrong_command_is_found(monkeypatch):
    assert parse("python tools/train.py configs/asvr_mini.py --seed 1", monkeypatch).seed == 1
    assert parse("torchrun --nproc-per-node=8 tools/train.py x.py --seed 2", monkeypatch).seed == 2
    assert parse("python -m asvr train x.py --cfg-options a.b=1", monkeypatch).cfg_options == ["a.b=1"]
    with contextlib.suppress(SystemExit):
        parse("python tools/train.py x.py --sed 1", monkeypatch)
        pytest.fail("--sed is no option")
    assert missing_files("python tools/train.py configs/none.py", set()) == ["configs/none.py"]


@pytest.mark.parametrize(
    "code, problem",
    [
        ("optim = dict(lr=-1)", "optim.lr=-1"),
        ("stages = dict(one=dict(data=dict(pac=True)))", "data.pac: unknown field"),
        ("encoder = dict(type='HFVisionEncode')", "no such encoder"),
        ("assert 1 == 2, 'no'", "no"),
    ],
)
def test_a_wrong_block_is_found(code, problem, reader):
    with pytest.raises(AssertionError, match=re.escape(problem)):
        reader.run(code)


def test_a_wrong_config_is_found(reader):
    with pytest.raises(ValueError, match="data.pac: unknown field"):
        reader.run('_base_ = ["./asvr_vicuna7b.py"]\ndata = dict(pac=True)\n')
