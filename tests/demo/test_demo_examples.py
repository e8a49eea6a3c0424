"""Examples to click: from the run's evaluation data, a folder or a file."""

import json

import pytest
from demo_helpers import gradient
from run_helpers import ROOT

from asvr.data.easy_vqa import EasyVQA, question_kind
from asvr.demo.examples import MOST, examples_of_run, read_examples

pytest.importorskip("easy_vqa", reason="easy-vqa is not installed (pip install -e '.[mini]')")
CONFIG = f"""
_base_ = ["{ROOT / "configs/asvr_mini.py"}"]
evaluation = dict(dataset=dict(max_images=30))
"""


def test_a_run_offers_questions_of_all_kinds_about_images_of_their_own(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    examples = examples_of_run(tmp_path, None)
    assert len(examples) == MOST
    assert len({question_kind(example.question) for example in examples}) == MOST
    assert len({example.image.tobytes() for example in examples}) == MOST
    assert len({example.answer for example in examples}) >= 4
    dataset = EasyVQA(split="test", seed=None, max_images=30)
    known = {tuple(m["value"] for m in record["conversations"]) for record in map(dataset.record, range(len(dataset)))}
    assert {(f"<image>\n{example.question}", example.answer) for example in examples} <= known
    assert examples_of_run(tmp_path, "pretrain") == []  # it has no evaluation


def test_a_run_whose_data_are_not_here_offers_none(tmp_path, caplog):
    missing = 'dict(type="LlavaDataset", ann_file="no.json", _delete_=True)'
    (tmp_path / "config.py").write_text(CONFIG.replace("dict(max_images=30)", missing))
    with caplog.at_level("INFO", logger="asvr"):
        assert examples_of_run(tmp_path, None) == []
    assert "no examples from the run's evaluation data" in caplog.text
    assert examples_of_run(tmp_path / "saved", None) == []  # a saved model knows no data


@pytest.mark.parametrize("form", ["role and content", "parts", "system first"])
def test_records_of_any_form_give_examples(form, tmp_path):
    gradient().convert("RGB").save(tmp_path / "a.png")
    question, answer = dict(role="user", content="what?"), dict(role="assistant", content="me")
    if form == "parts":
        question["content"] = [dict(type="image"), dict(type="text", text="what?")]
    system = [dict(role="system", content="Be brief.")] if form == "system first" else []
    bad = dict(image="a.png", messages=[question])
    record = dict(image=["a.png"], conversations=[*system, question, answer])
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(bad)}\n{json.dumps(record)}\n")
    dataset = f'dict(type="LlavaDataset", ann_file="{tmp_path / "rows.jsonl"}", _delete_=True)'
    (tmp_path / "config.py").write_text(CONFIG.replace("dict(max_images=30)", dataset))
    examples = examples_of_run(tmp_path, None)
    assert [(example.question, example.answer) for example in examples] == [("what?", "me")]


def test_a_folder_and_a_file(tmp_path):
    for name in ("b.png", "a.JPG"):
        gradient().convert("RGB").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    records = [dict(image="b.png", question="what?"), dict(image="a.JPG", question="who?", answer="me")]
    (tmp_path / "list.json").write_text(json.dumps(records * MOST))
    assert len(read_examples(tmp_path)) == 2
    examples = read_examples(tmp_path / "list.json")
    assert [(example.question, example.answer) for example in examples[:2]] == [("what?", None), ("who?", "me")]
    assert len(examples) == MOST and examples[0].image == gradient()


@pytest.mark.parametrize(
    "content, told",
    [
        ("{", "expected a folder of images or a JSON file"),
        ("[]", "expected a list of records"),
        ('[{"image": "a.png"}]', "record 0: expected texts 'image', 'question'"),
        ('[{"image": "a.png", "question": "q", "label": "x"}]', "record 0: expected texts"),
        ('[{"image": "gone.png", "question": "q"}]', "record 0: .*gone.png"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(content, told, tmp_path):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(ValueError, match=f"list.json.*{told}"):
        read_examples(tmp_path / "list.json")


def test_a_folder_without_images_is_told(tmp_path):
    with pytest.raises(ValueError, match="has no image"):
        read_examples(tmp_path)
