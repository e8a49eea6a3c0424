"""Accuracy of answers and of codes, and the tool that measures them."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from data_helpers import byte_level
from engine_helpers import TARGET, collate, item, tiny_model
from PIL import Image
from run_helpers import ROOT, TINY, tiny_env

from asvr.data import images
from asvr.data.llava import LlavaDataset
from asvr.evaluation import accuracy
from asvr.evaluation.accuracy import evaluate, report
from asvr.evaluation.metrics import normalise
from asvr.evaluation.predictions import right_codes

DATA = SimpleNamespace(image_aspect="square", max_length=200, on_error="raise", template="vicuna_v1")


@pytest.mark.parametrize(
    "answer, expected", [("Yes", "yes"), (" a red house. ", "a red house"), ("NO.", "no"), ("3.5", "3.5"), ("", "")]
)
def test_normalise(answer, expected):
    assert normalise(answer) == expected


@pytest.fixture
def rows() -> list[dict]:
    def ask(question: str, answer: str, **fields) -> dict:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return dict(conversations=turns, **fields)

    return [
        ask("<image>\nis it red?", "Yes", image="0.png", category="color"),
        ask("<image>\nis it blue and rather large?", "no", image="1.png", category="color"),
        ask("how many legs has a dog?", "four", category="number"),
        ask("<image>\nwhat is it?", "a house", image="0.png"),
    ]


def dataset(rows: list[dict], folder, **kwargs) -> LlavaDataset:
    for i, color in enumerate(("red", "blue")):
        Image.new("RGB", (12, 9), color).save(folder / f"{i}.png")
    (folder / "questions.json").write_text(json.dumps(rows))
    settings = dict(tokenizer=byte_level(), template="vicuna_v1", max_length=200, num_image_tokens=4)
    return LlavaDataset(ann_file=str(folder / "questions.json"), image_folder=str(folder), **(settings | kwargs))


def model(**kwargs):
    """Its vocabulary holds the tokenizer's, its tower reads 8 x 8 pixels."""
    return tiny_model(vocab_size=len(byte_level()), max_positions=256, **kwargs)


def ask(rows, folder, monkeypatch, answers: dict | None = None, **kwargs) -> dict:
    """Evaluate with answers by sample number in place of the model's, which says nothing sensible."""
    if answers is not None:
        batches = []

        def say(model, batch, tokenizer, *, template, max_new_tokens):
            batches.append(batch)
            return [answers[int(name.rsplit(":", 1)[1])] for name in batch.sample_ids]

        monkeypatch.setattr(accuracy, "generate", say)
    own = dict(data=DATA, samples_file=folder / "out" / "answers.jsonl", precision="float32", batch_size=2)
    return evaluate(kwargs.pop("model", None) or model(), dataset(rows, folder), byte_level(), **(own | kwargs))


def test_answers_are_counted_in_all_and_by_kind(rows, tmp_path, monkeypatch):
    result = ask(rows, tmp_path, monkeypatch, {0: "yes.", 1: "yes", 2: " Four", 3: "A house"})
    assert (result["right"], result["total"], result["refused"]) == (3, 4, 0) and result["accuracy"] == 0.75
    assert result["by_kind"] == {
        "color": dict(accuracy=0.5, total=2),
        "number": dict(accuracy=1.0, total=1),
        "all": dict(accuracy=1.0, total=1),
    }
    lines = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [line["right"] for line in lines] == [True, False, True, True]  # in the order of the file
    assert lines[1] == dict(
        id=f"{tmp_path}/questions.json:1",
        record_id=None,
        image="1.png",
        kind="color",
        question="is it blue and rather large?",
        expected="no",
        answer="yes",
        right=False,
    )
    assert "75.00 % of 4 questions" in report(result) and "color 50.0 %" in report(result)


def test_codes_are_counted_on_each_picture_once(rows, tmp_path, monkeypatch):
    own = model()
    result = ask(rows, tmp_path, monkeypatch, dict.fromkeys(range(4), "no"), model=own, num_examples=2)
    expected = []
    for color in ("red", "blue"):
        Image.new("RGB", (12, 9), color).save(tmp_path / f"{color}.png")
    questions = dataset(rows, tmp_path)
    for i in (0, 1):
        asked = questions.question(i)
        batch = collate(own)([dict(asked, labels=[-100] * len(asked["input_ids"]))])
        with torch.no_grad():
            expected.append(right_codes(own, own.targets[0], batch)[0])
    assert result["codes"] == {"semantic": pytest.approx(torch.stack(expected).mean((0, 1)).tolist())}
    assert [example["question"] for example in result["examples"]] == [
        line["question"] for line in (questions.question(0), questions.question(1))
    ]
    for example, right in zip(result["examples"], expected, strict=True):
        assert torch.equal(torch.tensor(example["maps"]["semantic"]), right.mean(-1).view(2, 2))
        Image.open(example["image"]).verify()
    json.dumps(result)


def test_pictures_without_files_are_written_beside_the_answers(rows, tmp_path):
    data = dataset(rows, tmp_path)
    data.picture = lambda name: (name, Image.open(tmp_path / name).convert("RGB"))
    own = dict(data=DATA, precision="float32", max_new_tokens=1, samples_file=tmp_path / "out" / "a.jsonl")
    result = evaluate(model(reconstruction=[TARGET]), data, byte_level(), **own)
    assert len(result["examples"]) == 2
    for example, color in zip(result["examples"], ("red", "blue"), strict=True):
        with Image.open(example["image"]) as picture:
            assert picture.getpixel((0, 0)) == Image.new("RGB", (1, 1), color).getpixel((0, 0))


@pytest.mark.parametrize("shift", [0, 1])
def test_right_codes_agree_with_the_training_step(shift):
    own = tiny_model(reconstruction=[dict(TARGET, shift=shift)]).eval()
    batch = collate(own)([item(image=Image.new("RGB", (8, 8), "red")), item(words=2, image=Image.new("RGB", (8, 8)))])
    with torch.no_grad():
        right = right_codes(own, own.targets[0], batch)
        out = own(batch)
    assert right.shape == (2, 4, 2) and not right.isnan().any()
    assert torch.equal(right.sum((0, 1)), out["correct_semantic"])


def test_a_picture_with_nothing_in_front_has_one_position_less():
    own = tiny_model().eval()
    first = item(image=Image.new("RGB", (8, 8), "red"))
    first = first | {key: first[key][1:] for key in ("input_ids", "labels")}
    batch = collate(own)([first])
    with torch.no_grad():
        right = right_codes(own, own.targets[0], batch)
        out = own(batch)
    assert right[0, 0].isnan().all() and torch.equal(right[0, 1:].sum(0), out["correct_semantic"])


def test_without_pictures_or_targets_there_are_no_codes(rows, tmp_path, monkeypatch):
    assert ask([rows[2]], tmp_path, monkeypatch, {0: "four"})["codes"] == {}
    result = ask(rows, tmp_path, monkeypatch, dict.fromkeys(range(4), "no"), model=model(reconstruction=[]))
    assert result["codes"] == {} and result["examples"] == []


def test_each_picture_is_decoded_once(rows, tmp_path, monkeypatch):
    """For answers, losses and codes, of all questions about it."""
    opened, real = [], images._stream
    monkeypatch.setattr(images, "_stream", lambda source: opened.append(str(source)) or real(source))
    ask(rows, tmp_path, monkeypatch, dict.fromkeys(range(4), "no"))
    assert sorted(opened) == [str(tmp_path / "0.png"), str(tmp_path / "1.png")]


def test_limit_asks_the_first_questions_only(rows, tmp_path, monkeypatch):
    assert ask(rows, tmp_path, monkeypatch, {0: "yes", 1: "yes"}, limit=2)["total"] == 2


def test_a_question_without_an_answer_is_refused(rows, tmp_path, monkeypatch):
    rows[2]["conversations"].pop()
    with pytest.raises(ValueError, match="questions.json:2: this question has no answer to compare with"):
        ask(rows, tmp_path, monkeypatch, dict.fromkeys(range(4), "no"))


def test_what_cannot_be_asked_is_counted_or_refused(rows, tmp_path):
    rows[0]["image"] = "none.png"
    own = dict(data=SimpleNamespace(**vars(DATA) | dict(on_error="skip")), precision="float32", max_new_tokens=1)
    skipping = dataset(rows, tmp_path, on_error="skip")
    result = evaluate(model(), skipping, byte_level(), samples_file=tmp_path / "a.jsonl", **own)
    assert (result["total"], result["refused"]) == (3, 1) and "1 questions refused" in report(result)
    with pytest.raises(ValueError, match="record 0: the image .*none.png is missing"):
        evaluate(model(), dataset(rows, tmp_path), byte_level(), samples_file=tmp_path / "a.jsonl", **own)
    with pytest.raises(ValueError, match="no question that can be asked"):
        evaluate(model(), dataset(rows[:1], tmp_path, on_error="skip"), byte_level(), samples_file=tmp_path, **own)


def test_a_picture_that_cannot_be_read_takes_its_questions_with_it(rows, tmp_path):
    data = dataset(rows, tmp_path, on_error="skip")
    (tmp_path / "0.png").write_bytes(b"no image")
    own = dict(data=SimpleNamespace(**vars(DATA) | dict(on_error="skip")), precision="float32", max_new_tokens=1)
    result = evaluate(model(), data, byte_level(), samples_file=tmp_path / "a.jsonl", batch_size=1, **own)
    assert (result["total"], result["refused"]) == (2, 2)
    asked = [json.loads(line)["question"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert asked == ["is it blue and rather large?", "how many legs has a dog?"]
    own["data"].on_error = "raise"
    with pytest.raises(ValueError, match="questions.json:[03]: the image .*0.png cannot be read"):
        evaluate(model(), data, byte_level(), samples_file=tmp_path / "a.jsonl", **own)


def test_a_question_longer_than_the_limit_is_refused(rows, tmp_path):
    rows[2]["conversations"][0]["value"] = "how many legs " * 100
    own = dict(data=DATA, precision="float32", max_new_tokens=1, samples_file=tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="record 2: .*max_length=200"):
        evaluate(model(), dataset(rows, tmp_path), byte_level(), **own)


def test_the_tool_answers_a_question_file(tiny_run, rows, tmp_path):
    work_dir = shutil.copytree(tiny_run, tmp_path / "moved")
    dataset(rows, tmp_path)
    options = [f"{key}={value}" for key, value in TINY.items()]
    command = [
        sys.executable,
        str(ROOT / "tools/eval.py"),
        str(ROOT / "configs/asvr_mini.py"),
        "--work-dir",
        work_dir,
    ]
    command += ["--questions", tmp_path / "questions.json", "--image-folder", tmp_path, "--out", tmp_path / "out"]
    done = subprocess.run(
        [*command, "--cfg-options", *options], cwd=tmp_path, env=tiny_env(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["total"] == 4 and result["by_kind"].keys() == {"color", "number", "all"}
    assert len(result["codes"]["semantic"]) == 2
    assert [json.loads(line)["expected"] for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()] == [
        "Yes",
        "no",
        "four",
        "a house",
    ]
    assert "of 4 questions" in (tmp_path / "out" / "evaluate.log").read_text()


def test_the_runs_own_results(tiny_run):
    results = json.loads((tiny_run / "results.json").read_text())
    assert results.keys() == {"blind", "finetune"}  # pretrain sees no question
    assert results["blind"]["codes"] == {} and len(results["finetune"]["codes"]["semantic"]) == 2
    for result in results.values():
        assert result["total"] == sum(kind["total"] for kind in result["by_kind"].values()) > 20
        assert {"color", "shape", "has color", "lacks shape"} <= result["by_kind"].keys()
    assert (tiny_run / "summary.png").stat().st_size > 10_000
