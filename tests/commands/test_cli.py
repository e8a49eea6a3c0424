"""The tools' command lines, and what importing the library costs."""

import importlib.metadata
import runpy
import subprocess
import sys

import pytest
import torch
from run_helpers import ROOT, call_tool, tiny_env

from asvr.commands.cli import parse_cfg_options, run_tool
from asvr.data.refusals import Refused

HEAVY = ("torch", "transformers", "timm", "mmengine", "matplotlib")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=tiny_env(), capture_output=True, text=True
    )


@pytest.fixture
def tool(monkeypatch):
    """Run a tool in this process; return what it says when it gives up."""
    monkeypatch.chdir(ROOT)

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        main = runpy.run_path(str(ROOT / "tools" / name))["main"]
        with pytest.raises(SystemExit) as end:
            run_tool(main)
        assert isinstance(end.value.code, str)  # Python prints it and exits with 1
        return end.value.code

    return run


@pytest.mark.parametrize("folder", ["tools", "benchmarks"])
def test_no_script_hides_another_module(folder):
    """Python looks for modules in the folder of a script first, so a script's name must be no module's."""
    # `evaluate` is imported by lmms-eval, which the tests' environment need not have.
    others = sys.stdlib_module_names | importlib.metadata.packages_distributions().keys() | {"evaluate"}
    assert not {file.stem for file in (ROOT / folder).glob("*.py")} & others


def test_a_study_without_its_questions_is_told_so(tool, tmp_path):
    assert tool("study.py", "x.py", "--questions", str(tmp_path)) == f"error: --questions: there is no file {tmp_path}"
    assert tool("study.py", "x.py", "--image-folder", ".") == "error: --image-folder needs --questions"
    assert "--jobs cannot be used with --report" in tool("study.py", "x.py", "--report", "--jobs", "2")
    assert tool("study.py", "x.py", "--jobs", "0") == "error: --jobs 0: expected at least 1"


@pytest.mark.parametrize(
    ("name", "abbreviated"), [("train.py", "--resum=never"), ("eval.py", "--task=mme"), ("study.py", "--repor")]
)
def test_an_option_is_not_abbreviated(name, abbreviated, monkeypatch, capsys):
    """A misspelt ``--resume never`` must not start a run anew."""
    monkeypatch.setattr(sys, "argv", [name, "config.py", abbreviated])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "tools" / name))["main"]()
    assert f"unrecognized arguments: {abbreviated}" in capsys.readouterr().err


def loaded(code: str, *arguments: str) -> set[str]:
    """The heavy packages that are loaded after ``code``."""
    done = python(f"import sys\n{code}\nprint('loaded', *(m for m in {HEAVY} if m in sys.modules))", *arguments)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_importing_the_library_is_light():
    assert loaded("import asvr") == set()
    assert loaded("import runpy\nsys.argv = ['asvr']\nrunpy.run_module('asvr', run_name='__main__')") == set()
    assert loaded("import matplotlib") == {"matplotlib"}, "the check itself sees nothing"


@pytest.mark.parametrize("name", ["train.py", "eval.py", "train_tokenizer.py"])
def test_help_does_not_wait_for_torch(name):
    code = (
        "import runpy\n"
        "sys.argv = [sys.argv[1], '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code"
    )
    assert loaded(code, str(ROOT / "tools" / name)) == set()


def all_commands(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    """What ``python -m asvr ARGUMENTS`` gives: its exit code, output and errors."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["asvr", *arguments])
    code = 0
    try:
        runpy.run_module("asvr", run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    return code, *capsys.readouterr()


def test_an_unknown_command_is_told_with_the_nearest_one(capsys, monkeypatch):
    code, said, errors = all_commands(capsys, monkeypatch, "trian", "configs/asvr_mini.py")
    assert (code, said) == (2, "") and errors.startswith("error: there is no command 'trian'; did you mean 'train'")


def test_a_command_is_the_tool_of_its_name(capsys, monkeypatch):
    arguments = "configs/examples/custom_components.py", "--dry-run", "--cfg-options", "schedule.steps=7"
    code, said, _ = all_commands(capsys, monkeypatch, "train", *arguments)
    done = call_tool("tools/train.py", *arguments)
    assert code == done.returncode == 0 and said == done.stdout and "ColorPatches" in said
    _, usage, _ = all_commands(capsys, monkeypatch, "train", "--help")
    assert usage.startswith("usage: asvr train ")


def test_a_commands_mistake_is_told_as_the_tools_is(capsys, monkeypatch):
    code, *_ = all_commands(capsys, monkeypatch, "train", "none.py")
    assert code == "error: there is no config file none.py"


@pytest.mark.parametrize(
    "given, expected",
    [
        ([], {}),
        (["optim.lr=1e-4", "data.cache=False"], {"optim.lr": 1e-4, "data.cache": False}),
        (["stages.finetune.train=[llm,heads]"], {"stages.finetune.train": ["llm", "heads"]}),
        (["work=a=b"], {"work": "a=b"}),
    ],
)
def test_cfg_options(given, expected):
    assert parse_cfg_options(given) == expected


def test_an_option_without_a_value_is_refused():
    with pytest.raises(ValueError, match="--cfg-options 'optim.lr': expected KEY=VALUE"):
        parse_cfg_options(["data.cache=False", "optim.lr"])


@pytest.mark.parametrize(
    "options, message",
    [
        (["optim.lr"], "--cfg-options 'optim.lr': expected KEY=VALUE"),
        (["optim.learning_rate=1"], "optim.learning_rate"),
        (["model.reconstruction.7.weight=2"], "model.reconstruction.7.weight=2 does not fit"),
        (["model.encoder.type=TimEncoder"], "TimmEncoder"),
    ],
)
def test_a_wrong_option_is_told_in_plain_words(tool, options, message, tmp_path):
    said = tool("train.py", "configs/asvr_mini.py", "--work-dir", str(tmp_path / "w"), "--cfg-options", *options)
    assert said.startswith("error: ") and message in said
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("name", ["train.py", "eval.py", "train_tokenizer.py"])
def test_a_missing_config_is_told_in_plain_words(tool, name, tmp_path):
    assert f"there is no config file {tmp_path}/none.py" in tool(name, str(tmp_path / "none.py"))


def test_a_bug_keeps_its_traceback():
    def main():
        raise TypeError("a bug")

    with pytest.raises(TypeError):
        run_tool(main)

    def from_elsewhere():
        int("three")  # a ValueError that is not this library's

    with pytest.raises(ValueError, match="invalid literal"):
        run_tool(from_elsewhere)


def test_what_a_script_itself_raises_is_one_line_and_its_bug_is_not(tmp_path):
    (tmp_path / "told.py").write_text("def main():\n    raise ValueError(\n        'set --steps'\n    )\n")
    told = call_tool(str(tmp_path / "told.py"))
    assert (told.returncode, told.stderr) == (1, "error: set --steps\n")
    (tmp_path / "bug.py").write_text("def main():\n    first, second = 1, 2, 3\n")
    with pytest.raises(ValueError, match="too many values"):
        call_tool(str(tmp_path / "bug.py"))


def test_a_reader_that_stops_early_is_no_error():
    code = "from asvr.commands.cli import run_tool; run_tool(lambda: print('line\\n' * 50_000))"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=tiny_env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


def test_another_pipe_that_breaks_is_an_error():
    def main():
        raise BrokenPipeError("to a process of ours")

    with pytest.raises(BrokenPipeError, match="of ours"):
        run_tool(main)


class OneRefused(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, i):
        raise Refused("rows.json, record 0: the image is missing", "missing image")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_refused_sample_is_told_in_plain_words(workers):
    with pytest.raises(SystemExit) as end:
        run_tool(lambda: list(torch.utils.data.DataLoader(OneRefused(), num_workers=workers)))
    assert end.value.code == "error: rows.json, record 0: the image is missing"


def test_evaluate_before_training_is_refused(tool, tmp_path):
    said = tool("eval.py", "configs/asvr_mini.py", "--work-dir", str(tmp_path / "w"))
    assert "stage 'finetune' is not finished" in said and "run it first with asvr train" in said


def test_the_seed_option_replaces_the_configs(tool, tmp_path):
    said = tool("train.py", "configs/asvr_mini.py", "--work-dir", str(tmp_path / "w"), "--seed", "-1")
    assert "runtime.seed" in said


def test_lists_of_dicts_in_options_are_told():
    with pytest.raises(ValueError, match="lists of dicts cannot be given here: write them into a config file"):
        parse_cfg_options(["model.reconstruction=[dict(name='x',type='y')]"])
