"""tools/eval.py: which options go together, and questions to a folder in place of a config."""

import json
import runpy
import shutil
import sys

import pytest
from run_helpers import ROOT

import asvr
from asvr.commands.cli import run_tool

CONFIG = "configs/asvr_mini.py"


@pytest.fixture
def evaluate(monkeypatch):
    """Run the tool in this process."""
    main = runpy.run_path(str(ROOT / "tools/eval.py"))["main"]

    def run(*arguments) -> None:
        monkeypatch.setattr(sys, "argv", ["eval.py", *map(str, arguments)])
        run_tool(main)

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG, "--tasks", "mme", "--questions", "q.json"], "--questions does not go with --tasks"),
        ([CONFIG, "--tasks", "mme", "--image-folder", "."], "--image-folder does not go with --tasks"),
        ([CONFIG, "--tasks", "mme", "--cfg-options", "a=1"], "--cfg-options does not go with --tasks"),
        ([CONFIG, "--batch-size", "2"], r"--batch-size does not go with questions \(without --tasks\)"),
        ([CONFIG, "--device", "cpu"], "--device does not go with questions"),
        ([CONFIG, "--include-path", "."], "--include-path does not go with questions"),
        ([CONFIG, "--skip-missing"], "--skip-missing does not go with questions"),
        ([CONFIG, "--image-folder", "."], "--image-folder can only be used with --questions"),
        (["models/mine", "--work-dir", "w", "--tasks", "mme"], "--work-dir can only be used with a config"),
        (
            ["models/mine", "--questions", "q.json", "--cfg-options", "a=1"],
            "--cfg-options can only be used with a config",
        ),
        ([CONFIG, "--tasks", "mme", "--limit", "0"], "--limit 0: expected at least 1"),
        ([CONFIG, "--questions", "q.json"], "--questions: there is no file q.json"),
        ([CONFIG, "--tasks", "mme", "--batch-size", "0"], "--batch-size 0: expected at least 1"),
        (["none.py", "--tasks", "mme"], "there is no config file none.py"),
        (["models/none/here", "--questions", CONFIG], "models/none/here: there is no such folder"),
    ],
)
def test_options_without_a_meaning_are_refused(evaluate, arguments, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        evaluate(*arguments)


@pytest.fixture
def questions(tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    turns = [{"from": "human", "value": "<image>\nwhat color is the shape?"}, {"from": "gpt", "value": "red"}]
    file = tmp_path / "questions.json"
    file.write_text(json.dumps([dict(image="red.png", conversations=turns)] * 2))
    return file


def test_a_saved_model_answers_a_question_file(evaluate, tiny_run, questions, tmp_path):
    model = asvr.load(tiny_run, device="cpu")
    folder = model.save_pretrained(tmp_path / "mine")
    with pytest.raises(
        SystemExit, match="a saved model has no questions of its own: give --questions FILE, or --tasks"
    ):
        evaluate(folder)
    evaluate(folder, "--questions", questions, "--image-folder", tmp_path)
    [first, second] = (folder / "evaluation" / "questions" / "answers.jsonl").read_text().splitlines()
    assert json.loads(first)["answer"] == model.chat(
        tmp_path / "red.png", "what color is the shape?", max_new_tokens=32
    )
    evaluate(folder, "--questions", questions, "--image-folder", tmp_path, "--limit", 1, "--out", tmp_path / "one")
    assert (tmp_path / "one" / "answers.jsonl").read_text() == first + "\n"
    assert json.loads((tmp_path / "one" / "result.json").read_text())["total"] == 1


def test_a_work_dir_answers_its_own_questions_and_others(evaluate, tiny_run, questions, tmp_path):
    work_dir = shutil.copytree(tiny_run, tmp_path / "run")
    evaluate(work_dir)
    result = json.loads((work_dir / "evaluation" / "result.json").read_text())
    assert result["accuracy"] == json.loads((tiny_run / "results.json").read_text())["finetune"]["accuracy"]
    evaluate(work_dir, "--questions", questions, "--image-folder", tmp_path, "--stage", "blind")
    assert json.loads((work_dir / "evaluation" / "questions" / "result.json").read_text())["total"] == 2
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / questions.name
    other.write_text(json.dumps(json.loads(questions.read_text())[:1]))
    with pytest.raises(SystemExit, match="holds the answers to .*questions.json: give this file another name"):
        evaluate(work_dir, "--questions", other, "--image-folder", tmp_path)
    questions.write_text(other.read_text())  # the file itself, changed
    evaluate(work_dir, "--questions", questions, "--image-folder", tmp_path, "--stage", "blind")
    assert json.loads((work_dir / "evaluation" / "questions" / "result.json").read_text())["total"] == 1
