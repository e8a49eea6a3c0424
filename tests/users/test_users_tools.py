"""What is logged, printed or drawn ends nothing, whatever the text and the locale; and the tools of an install."""

import ast
import io
import json
import logging
import os
import re
import runpy
import shutil
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from run_helpers import ROOT, tiny_env

from asvr.base.log import logger, progress_bar, set_up_logging
from asvr.base.plots import LONGEST, optional, plain
from asvr.commands.cli import run_tool
from asvr.demo.maps import TargetMap

# What matplotlib takes for a formula and cannot read, what few fonts and encodings have, and half a character.
ODD = ["图里是什么颜色?😀", "is it $5^ or $6_?", "a\tb\x1b[31m\x00", "half \ud83d", "[/bold] {x} %s %d", "x" * 3000]
MATHS = "$x_$"
SOURCES = [*ROOT.glob("asvr/**/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("benchmarks/*.py"), ROOT / "setup.py"]


def turns(question: str, answer: str) -> list[dict]:
    return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]


def write_data(folder: Path, picture: str = "a.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), "red").save(folder / picture)
    texts = [("图里是什么颜色?😀", "红色 $5^"), ("is it $5^ or $6_?", "😀"), ("what?", "red")] * 4
    records = [
        dict(id=f"图{i}", image=picture, category=f"颜色{i % 2} {MATHS}", conversations=turns(*text))
        for i, text in enumerate(texts)
    ]
    file = folder / "data.json"
    file.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return file


def write_config(folder: Path, data: Path) -> Path:
    """configs/asvr_mini.py at a tiny size, on a LLaVA file; a stage and a target with odd names."""
    own = dict(type="LlavaDataset", ann_file=str(data), image_folder=str(data.parent))
    base = str(ROOT / "configs/asvr_mini.py")
    (folder / "config.py").write_text(
        f"# 配置\n_base_ = [{base!r}]\n"
        f"text_tokenizer = dict(vocab_size=300, corpus=dict(_delete_=True, **{own!r}))\n"
        "model = dict(encoder=dict(image_size=64), llm=dict(arch=dict(hidden_size=32, intermediate_size=48, "
        "num_hidden_layers=1)), reconstruction=[dict(name='semantic', tokenizer=dict(type='SemanticTokenizer', "
        "depth=2, codebook_size=4), fit=dict(vectors_per_code=4, iterations=2), head=dict(type='DepthTransformerHead',"
        " width=16, layers=1, num_heads=4), weight=0.3, shift=1)])\n"
        f"data = dict(train=dict(_delete_=True, **{own!r}), micro_batch=4, global_batch=4)\n"
        "schedule = dict(steps=2)\nruntime = dict(log_interval=1, device='cpu')\n"
        "stages = {'_delete_': True, 'tune $x_$ [b]': dict(init='scratch', train=['projector', 'heads', 'llm'])}\n"
        f"evaluation = dict(dataset=dict(_delete_=True, **{own!r}), batch_size=4, max_new_tokens=4)\n",
        encoding="utf-8",
    )
    return folder / "config.py"


def ascii_stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict", write_through=True)


def call(tool: str, *arguments, typed: bytes = b"") -> tuple[int | str, str]:
    """The exit code, and what a tool prints to a terminal that has ASCII alone."""
    out, code = ascii_stream(), 0
    main = runpy.run_path(str(ROOT / tool))["main"]
    typed = io.TextIOWrapper(io.BytesIO(typed), encoding="ascii", errors="strict")
    with (
        chdir(ROOT),
        patch.object(sys, "argv", [tool, *map(str, arguments)]),
        patch.object(sys, "stdin", typed),
        patch.dict(os.environ),
        redirect_stdout(out),
        redirect_stderr(out),
    ):
        try:
            run_tool(main)
        except SystemExit as end:
            code = end.code or 0
    return code, out.buffer.getvalue().decode("ascii")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run in a process of its own, where Python takes ASCII for every file that does not say otherwise."""
    pytest.importorskip("easy_vqa", reason="the extra 'mini' is not installed")
    folder = tmp_path_factory.mktemp("ascii")
    config = write_config(folder, write_data(folder))
    env = tiny_env() | dict(LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii", PYTHONPATH=str(ROOT))
    command = [sys.executable, ROOT / "tools/train.py", config, "--work-dir", folder / "run"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"\\u989c\\u8272" in done.stdout  # a kind of question
    return folder


def test_a_run_under_an_ascii_locale_keeps_all_that_it_made(finished):
    run = finished / "run"
    (result,) = json.loads((run / "results.json").read_text(encoding="utf-8")).values()
    assert set(result["by_kind"]) == {f"颜色0 {MATHS}", f"颜色1 {MATHS}"}
    assert f"颜色0 {MATHS}" in (run / "train.log").read_text(encoding="utf-8")
    answers = next(run.glob("*/answers.jsonl"))
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert {row["question"] for row in rows} >= {"图里是什么颜色?😀", "is it $5^ or $6_?"}
    assert (run / "summary.png").is_file()


def test_every_tool_answers_on_an_ascii_terminal(finished, tmp_path):
    """Files and folders have names that the terminal cannot print; so have what is asked and what is answered."""
    data = write_data(tmp_path / "数据 $x_$", picture="图😀.png")
    out = tmp_path / "结果 $x_$"
    config = write_config(tmp_path, data)
    code, printed = call("tools/check_data.py", config, "--workers", 0, "--out", out)
    assert code == 0 and "\\u7ed3\\u679c" in printed and (out / "sizes.png").is_file()
    asked = ["--questions", data, "--image-folder", data.parent, "--out", out / "answers"]
    code, printed = call("tools/eval.py", finished / "run", *asked)
    assert code == 0 and "\\u989c" in printed and json.loads((out / "answers/result.json").read_text("utf-8"))
    typed = f"/image {data.parent / '图😀.png'}\n图里是什么颜色?\n".encode() + b"\xff?\n/clear\n"
    code, printed = call("tools/chat.py", finished / "run", "--device", "cpu", "--max-new-tokens", 4, typed=typed)
    assert code == 0 and "png: 40 x 30 pixels" in printed
    assert printed.count("error:") == 1 and "half a character" in printed  # \xff alone is no UTF-8
    code, printed = call("tools/convert.py", "show", tmp_path / "没有")
    assert "\\u6ca1\\u6709" in str(code) or "没有" in str(code)


def test_names_with_brackets_are_no_markup(tmp_path):
    config = write_config(tmp_path, write_data(tmp_path / "data"))
    text = config.read_text(encoding="utf-8").replace("'tune $x_$ [b]'", "'tune [/b]'")
    config = tmp_path / "图[b].py"
    config.write_text(text, encoding="utf-8")
    for tool, *more in (("train", "--dry-run"), ("estimate", "--plan", "1x2")):
        code, printed = call(f"tools/{tool}.py", config, *more)
        assert code == 0 and "tune" in printed and "[/b]" in printed


def test_a_name_that_the_locale_does_not_have_is_one_line(tmp_path):
    write_data(tmp_path)
    (tmp_path / "config.py").write_text(f"_base_ = [{str(tmp_path / '没有.py')!r}]\n", encoding="utf-8")
    env = tiny_env() | dict(LC_ALL="C", PYTHONUTF8="0", PYTHONPATH=str(ROOT))
    command = [sys.executable, ROOT / "tools/train.py", tmp_path / "config.py", "--dry-run"]
    done = subprocess.run(command, env=env, capture_output=True)
    (line,) = done.stderr.decode("ascii").splitlines()
    assert done.returncode == 1 and "\\u6ca1\\u6709" in line and "ascii: set PYTHONUTF8=1" in line


# Logs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path):
    set_up_logging(tmp_path / "a.log")
    yield tmp_path / "a.log"
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def test_a_line_reaches_the_file_whatever_the_terminal_takes(log, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    own = [handler for handler in logger.handlers if type(handler).__module__ == "asvr.base.log"]
    monkeypatch.setattr(logger, "handlers", own)  # pytest's sends half a character to xdist, which dies of it
    for stream in (ascii_stream(), Gone()):
        with redirect_stdout(stream), redirect_stderr(stream):
            with progress_bar(total=2, desc="微调", unit="步") as bar:
                for text in ODD:
                    logger.info(text)
                for handler in own:  # a mistake of ours
                    handler.handle(logging.LogRecord("", 20, "图.py", 1, "%d", ("图",), None))
                bar.update(2)
    text = log.read_text(encoding="utf-8")
    assert all(text.count(part) == 2 for part in ("图里是什么颜色?😀", "$5^", "half \\ud83d", "{x} %s %d"))


def test_a_bar_gives_way_to_a_line(log):
    stream = io.StringIO()
    with redirect_stdout(stream), redirect_stderr(stream), progress_bar(total=2, desc="stage") as bar:
        logger.info("a line")
        bar.update(2)
    before, _, _ = stream.getvalue().partition("a line")
    bar, cleared, time = before.rsplit("\r", 2)
    assert "stage" in bar and cleared.isspace() and re.fullmatch(r"[\d:]{8} ", time)


def test_every_text_file_says_its_encoding():
    """Without it Python takes the locale's."""
    assert [str(file.relative_to(ROOT)) for file in SOURCES for _ in unsaid(ast.parse(file.read_text("utf-8")))] == []
    broken = (
        "open(f)\nopen(f, 'a')\np.open('w')\np.read_text()\np.write_text(t)\nlogging.FileHandler(f)\nrun(text=True)"
    )
    assert len(list(unsaid(ast.parse(broken)))) == 7
    fine = "open(f, 'rb')\nImage.open(f)\nos.open(f, 0)\np.read_text('utf-8')\nopen(f, encoding='utf-8')\nrun(c)"
    assert list(unsaid(ast.parse(fine))) == []


TEXT_AT = dict(read_text=1, write_text=2)  # arguments, the encoding among them
BINARY = ("Image", "os", "tarfile")  # what else is opened by a function of that name


def unsaid(tree: ast.AST):
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(keyword.arg in ("encoding", None) for keyword in node.keywords):
            continue
        name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
        owner = getattr(getattr(node.func, "value", None), "id", None)
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        modes = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        if name in TEXT_AT:
            if len(node.args) < TEXT_AT[name]:
                yield node
        elif name == "open":
            if owner not in BINARY and not any("b" in mode for mode in modes):
                yield node
        elif name in ("FileHandler", "NamedTemporaryFile", "TextIOWrapper"):
            yield node
        elif name in ("run", "Popen", "check_output") and any(keyword.arg == "text" for keyword in node.keywords):
            yield node


# Figures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ODD)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_text_is_drawn(text):
    figure = Figure()
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], label=plain(text))
    axis.set_title(plain(text))
    axis.set_yticks([0], [plain(text)])
    axis.legend()
    figure.savefig(io.BytesIO())
    assert len(plain(text)) <= 2 * LONGEST


def test_a_dollar_is_drawn_as_a_dollar():
    def pixels(text: str) -> np.ndarray:
        figure = Figure(figsize=(2, 1))
        figure.text(0, 0.5, text)
        stream = io.BytesIO()
        figure.savefig(stream, format="raw")
        return np.frombuffer(stream.getvalue(), np.uint8)

    assert np.array_equal(pixels(plain("a $b$")), pixels(r"a \$b\$"))
    assert not np.array_equal(pixels(plain("a $b$")), pixels("a $b$"))


def test_a_summary_draws_what_a_user_asked(tmp_path):
    from asvr.evaluation.summary import draw_summary

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    line = dict(stage=ODD[1], step=1, steps=2, loss_text=float("nan"), acc_semantic=[float("nan"), 0.5])
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    maps = {MATHS: [[float("nan"), 1.0]]}
    example = dict(image=str(tmp_path / "a.png"), right=False, maps=maps, question="", expected="", answer="")
    examples = [dict(example, question=text, expected=text, answer=text) for text in ODD]
    kinds = {text: dict(accuracy=0.5) for text in ODD}
    results = {ODD[0]: dict(accuracy=0.5, by_kind=kinds, examples=examples)}
    assert draw_summary(tmp_path, results).is_file()


def test_maps_of_a_target_with_an_odd_name_are_drawn():
    from asvr.evaluation.drawing import draw_targets

    shape = (2, 2, 1)
    own = TargetMap(name=ODD[1], right_RCD=np.ones(shape), probability_RCD=np.full(shape, np.nan), images=None)
    stream = io.BytesIO()
    draw_targets(Image.new("RGB", (8, 8)), [own]).savefig(stream)
    assert Image.open(stream).width > 0


def test_a_figure_that_fails_is_a_warning(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(logger, "warning", lambda line, *values: told.append(line % values))
    with optional(tmp_path / "a.png"):
        raise TypeError("no glyph")
    assert told == [f"{tmp_path / 'a.png'} was not drawn: TypeError: no glyph"]
    with pytest.raises(KeyboardInterrupt), optional(tmp_path / "a.png"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("drawn", "work"),
    [
        ("asvr.engine.run.draw_summary", "run"),
        ("asvr.engine.check_data.draw_sizes", "check_data"),
        ("asvr.tokenizer_training.training.draw_levels", "tokenizer"),
        ("asvr.studies.report.draw_groups", "study"),
        ("asvr.profiling.throughput._draw", "throughput"),
    ],
)
def test_what_is_finished_is_not_lost_with_its_figure(drawn, work, tmp_path, monkeypatch, finished):
    def fails(*args, **kwargs):
        raise ValueError("ParseFatalException: expected a formula")

    monkeypatch.setattr(drawn, fails)
    code, printed, kept = WORK[work](tmp_path, finished)
    assert code == 0 and "was not drawn: ValueError: ParseFatalException" in printed
    assert all(file.is_file() for file in kept)


def again(folder: Path, finished: Path):
    shutil.copytree(finished / "run", folder / "run")  # a finished run is drawn anew
    (folder / "run/summary.png").unlink()
    code, printed = call("tools/train.py", finished / "config.py", "--work-dir", folder / "run")
    return code, printed, [folder / "run/results.json"]


def checked(folder: Path, finished: Path):
    code, printed = call("tools/check_data.py", finished / "config.py", "--workers", 0, "--out", folder)
    return code, printed, [folder / "report.json"]


def fitted(folder: Path, finished: Path):
    options = ["data.max_images=8", "tokenizer.depth=1", "tokenizer.codebook_size=4"]
    tool = ["tools/train_tokenizer.py", "configs/tokenizers/semantic_mini.py", "--work-dir", folder]
    code, printed = call(*tool, "--cfg-options", *options)
    return code, printed, [folder / "report.json", folder / "tokenizer/tokenizer.json"]


def compared(folder: Path, finished: Path):
    stage = next(path.name for path in (finished / "run").glob("tune*"))
    for arm in ("无", MATHS):
        shutil.copytree(finished / "run", folder / "out" / arm / "seed_0")
    (folder / "study.py").write_text(
        f"config = {str(finished / 'config.py')!r}\nseeds = [0]\nbaseline = '无'\n"
        f"arms = {{'无': {{}}, {MATHS!r}: dict(stages={{{stage!r}: dict(schedule=dict(steps=2))}})}}\n",
        encoding="utf-8",
    )
    code, printed = call("tools/study.py", folder / "study.py", "--out", folder / "out", "--report")
    assert not any(f"{plot}.png," in printed for plot in ("radar", "bars")) and "curves.png" in printed
    return code, printed, [folder / "out" / name for name in ("report.json", "report.md", "curves.png")]


def timed(folder: Path, finished: Path):
    from test_benchmarks import TINY

    own = ["--samples", 1, "--rounds", 1, "--out", folder / "a"]
    code, printed = call("benchmarks/throughput.py", *TINY[:1], *own, *TINY[1:])
    return code, printed, [folder / "a.json", folder / "a.md"]


WORK = dict(run=again, check_data=checked, tokenizer=fitted, study=compared, throughput=timed)


# Installed ----------------------------------------------------------------------------------------------------


SHIPPED = ("configs", "examples")  # folders that an install holds inside the package


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """What an install of this clone holds, beside which the clone's scripts are used."""
    pytest.importorskip("setuptools", reason="an install is built with setuptools")
    folder = tmp_path_factory.mktemp("installed")
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("asvr", *SHIPPED):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "site"]
    subprocess.run(build, cwd=folder, check=True, capture_output=True)
    return folder / "site"


def test_an_install_holds_all_files(installed):
    held = {file.relative_to(installed) for file in installed.rglob("*") if file.is_file()}
    own = {file.relative_to(ROOT) for file in (ROOT / "asvr").rglob("*") if file.is_file()}
    for folder in SHIPPED:
        files = (file for file in (ROOT / folder).rglob("*") if file.is_file())
        own |= {Path("asvr") / "_shipped" / file.relative_to(ROOT) for file in files}
    assert held == {file for file in own if "__pycache__" not in file.parts}


# A recipe, one with modules of its own, and a skeleton whose config inherits from a recipe.
INSTALLED_ALONE = """
from pathlib import Path
from asvr.commands.new import write
from asvr.recipe.config import load_config
print(load_config("asvr_mini").filename)
print(load_config("examples/dataset").data.train.type)
write("loss", "OwnLoss", "own_loss", Path())
print(load_config("own_loss_mini.py").model.reconstruction[0].loss.type)
"""
TOOLS = sorted(file.name for file in (ROOT / "tools").glob("*.py"))


def beside(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess:
    """A script of the clone, from another directory, with the installed library."""
    env = tiny_env() | dict(PYTHONPATH=str(installed))
    return subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True)


def test_the_clone_s_tools_run_on_an_installed_library(installed, tmp_path):
    (tmp_path / "here.py").write_text("import asvr\nprint(asvr.__file__)\n")
    assert beside(installed, tmp_path, "here.py").stdout.startswith(str(installed))
    for name in TOOLS:
        done = beside(installed, tmp_path, str(ROOT / "tools" / name), "--help")
        assert done.returncode == 0 and "usage:" in done.stdout, (name, done.stderr)
    recipe = str(ROOT / "configs/benchmarks/small_asvr.py")
    done = beside(installed, tmp_path, str(ROOT / "tools/train.py"), recipe, "--dry-run")
    assert done.returncode == 0 and "Dry run of small_asvr.py" in done.stdout, done.stderr
    (tmp_path / "here.py").write_text(INSTALLED_ALONE)
    done = beside(installed, tmp_path, "here.py")
    recipe = installed / "asvr/_shipped/configs/asvr_mini.py"
    assert done.stdout.split() == [str(recipe), "Dots", "OwnLoss"], done.stderr
    done = beside(installed, tmp_path, "-m", "asvr", "scenes", str(tmp_path / "scenes"), "--scenes", "2")
    assert done.returncode == 0 and (tmp_path / "scenes.json").is_file(), done.stderr
