"""What makes a task another one, so that its earlier results are not kept: its text, its code and its data."""

import os

import pytest

from asvr.benchmarks.task_files import find_tasks

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (pip install -e '.[eval]')")

TASK = """
task: mine
dataset_path: {path}
dataset_kwargs: {kwargs}
test_split: test
output_type: generate_until
doc_to_text: !function {function}
doc_to_target: answer
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
HUB = "nobody/Nothing"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the user is; tasks are in a folder of that."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.delenv("LMMS_EVAL_DATASETS_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "tasks/utils.py": "",
        "mine/test/a.jsonl": '{"question": "what?"}',
        "mine/test/a.png": "x",
    }.items():
        write(tmp_path / name, text)
    return tmp_path


def write(file, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def task(folder, *, path: str = "json", kwargs: str = "{}", function: str = "utils.question"):
    """Its fingerprint, as a function."""
    write(folder / "tasks" / "mine.yaml", TASK.format(path=path, kwargs=kwargs, function=function))
    return lambda: find_tasks(["mine"], [folder / "tasks"]).fingerprint("mine")


@pytest.mark.parametrize(
    "data",
    [
        dict(kwargs="{data_files: {test: mine/*/*.jsonl}}"),
        dict(kwargs="{data_files: [mine/**]}"),
        dict(kwargs="{data_dir: mine, data_files: test/*.jsonl}"),
        dict(path="./mine"),
        dict(path="imagefolder", kwargs="{data_dir: mine}"),
    ],
    ids=["pattern", "all below", "from a folder", "folder", "folder of a kind"],
)
def test_data_that_were_edited_or_added(folder, data):
    fingerprint = task(folder, **data)
    before = fingerprint()
    assert fingerprint() == before
    write(folder / "mine/test/a.jsonl", '{"question": "who?!"}')
    edited = fingerprint()
    assert edited != before
    write(folder / "mine/test/b.jsonl", "{}")
    assert fingerprint() != edited


def test_pictures_in_a_folder_of_data(folder):
    fingerprint = task(folder, path="./mine")
    before = fingerprint()
    picture = folder / "mine/test/a.png"
    os.utime(picture, ns=(0, picture.stat().st_mtime_ns + 1))  # as large as before
    edited = fingerprint()
    assert edited != before
    picture.rename(picture.with_name("b.png"))
    moved = fingerprint()
    assert moved != edited
    write(folder / "mine/test/cache-0a1b.arrow", "what the library datasets keeps of a task's process_docs")
    assert fingerprint() == moved


def test_another_revision_of_the_hub(folder):
    fingerprint = task(folder, path=HUB)
    nowhere = fingerprint()
    write(folder / "hub/datasets--nobody--Nothing/refs/main", "abc\n")
    fetched = fingerprint()
    write(folder / "hub/datasets--nobody--Nothing/refs/main", "def\n")
    newer = fingerprint()
    write(folder / "datasets/nobody___nothing/default/0.0.0/abc/dataset_info.json", "{}")
    prepared = fingerprint()
    write(folder / "datasets/nobody___nothing/other/0.0.0/abc/dataset_info.json", "{}")
    assert len({nowhere, fetched, newer, prepared}) == 4 and fingerprint() == prepared


def test_code_elsewhere(folder, monkeypatch):
    """Beside the yaml, in a folder named from there, in a package, and in a module of its own."""
    monkeypatch.syspath_prepend(folder)
    write(folder / "package/__init__.py", "raise SystemExit('imported')")
    places = {
        "utils.question": "tasks/utils.py",
        "../shared/code.question": "shared/code.py",
        "package.code.question": "package/code.py",
        "alone.question": "alone.py",
    }
    for function, file in places.items():
        write(folder / file, "def question(doc): return doc['question']\n")
        fingerprint = task(folder, function=function)
        before = fingerprint()
        write(folder / file, "def question(doc): return 'why?'\n")
        edited = fingerprint()
        assert edited != before, function
        helper = (folder / file).with_name("helper.py")
        write(helper, f"# {function}")
        assert (fingerprint() != edited) == (function != "alone.question"), function
    assert task(folder, function="nowhere.code.question")() and task(folder, function="a_b.question")()


def test_code_of_an_included_yaml_stands_beside_that(folder):
    write(folder / "base/base.yaml", "doc_to_visual: !function looks.pictures\n")
    write(folder / "base/looks.py", "1")
    fingerprint = task(folder)
    text = (folder / "tasks/mine.yaml").read_text()
    write(folder / "tasks/mine.yaml", f"include: {folder / 'base/base.yaml'}\n{text}")
    before = fingerprint()
    write(folder / "base/looks.py", "2")
    assert fingerprint() != before
