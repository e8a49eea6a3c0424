"""Talking about images: the answers of `Pretrained.chat`, told as they are written; what is wrong is told too."""

import subprocess
import sys

import pytest
import torch
from demo_helpers import pretrained
from PIL import Image
from run_helpers import ROOT, tiny_env

import asvr
from asvr.data.batch import IMAGE_TOKEN
from asvr.data.easy_vqa import EasyVQA
from asvr.demo.chat import Conversation, _Stream

QUESTION = "what color is the shape?"


@pytest.fixture(scope="module")
def trained(tiny_run):
    return asvr.load(tiny_run, device="cpu")


@pytest.fixture(scope="module")
def picture() -> str:
    return str(next(iter(EasyVQA(split="test", max_images=1).images()))[1])


def test_an_answer_is_that_of_chat_and_is_told_as_it_is_written(trained, picture):
    talk, told = Conversation(trained, max_new_tokens=8), []
    talk.show(picture)
    answer = talk.ask(QUESTION, told.append)
    assert answer == trained.chat(picture, QUESTION, max_new_tokens=8)
    assert "".join(told).strip() == answer and len(told) > 1


class Scripted:
    """Stands for a model: gives the answers it was given, and keeps what it was asked."""

    text_tokenizer = object()

    def __init__(self, *answers: str):
        self.answers, self.prompts = list(answers), []

    def generate(self, prompts, **kwargs):
        self.prompts += prompts
        return [self.answers.pop(0)]


def test_a_mark_in_an_answer_is_no_picture_in_the_next_prompt():
    model = Scripted("an <image> of it", " <image> ", "yes")
    talk = Conversation(model)
    assert talk.ask("what?") == "an  of it" and talk.ask("hm?") == "" and talk.ask("sure?") == "yes"
    assert [message["value"] for message in model.prompts[-1]["messages"]] == ["what?", "an  of it", "sure?"]


@pytest.mark.parametrize("template", ["vicuna_v1", "llama_2", "mistral", "chatml"])
def test_a_question_cannot_write_control_tokens(template):
    """`Pretrained.batch` makes the prompts of chat, of the page and of lmms-eval's model."""
    model = pretrained()
    model.template = template
    control = {*model.text_tokenizer.hf.all_special_ids, IMAGE_TOKEN}
    rows = []
    for text in ("".join(model.text_tokenizer.hf.all_special_tokens), "x"):
        messages = [{"from": "human", "value": text}, {"from": "gpt", "value": f"{text} y"}]
        messages.append({"from": "human", "value": text})
        ids = model.batch([dict(images=[], messages=messages)]).input_ids_BT[0].tolist()
        rows.append([token for token in ids if token in control])
    assert rows[0] == rows[1]


def test_what_was_said_before_counts(picture):
    model = Scripted("red", "", "two", "hi")
    talk = Conversation(model)
    talk.show(picture)
    talk.ask(QUESTION)
    talk.show(picture)
    talk.show(picture)
    assert talk.ask("hm?") == ""  # not remembered, and its images wait for the next question
    talk.ask("what does <image> mean?")  # a mark in the text is no image
    values = [message["value"] for message in model.prompts[-1]["messages"]]
    assert values == [f"<image>\n{QUESTION}", "red", "<image>\n<image>\nwhat does  mean?"]
    assert len(model.prompts[-1]["images"]) == 3
    talk.clear()
    talk.ask("hello")
    assert model.prompts[-1] == dict(images=[], messages=[{"from": "human", "value": "hello"}])


def test_characters_of_several_tokens_are_told_whole():
    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode(errors="replace")

    told = []
    stream = _Stream(Bytes(), told.append)
    for byte in "é, ö".encode():
        stream.put(torch.tensor([byte]))
    assert told == ["é", ",", " ", "ö"]


def test_token_maps_are_of_every_depth(trained, picture):
    talk = Conversation(trained)
    with pytest.raises(ValueError, match="no image yet"):
        talk.token_maps()
    talk.show(picture)
    (only,) = talk.token_maps()
    assert only.name == "semantic" and only.right_RCD.shape == (*trained.model.encoder.grid, 2)


def test_attention_is_that_of_the_last_answer(trained, picture, monkeypatch):
    monkeypatch.setattr(type(trained), "generate", lambda self, prompts, **kwargs: ["red"])
    talk = Conversation(trained)
    talk.show(picture)
    with pytest.raises(ValueError, match="no answer yet"):
        talk.attention()
    talk.ask(QUESTION)
    first = talk.attention()
    assert first.shape == (trained.model.llm.num_layers, *trained.model.encoder.grid)
    talk.ask("is there a circle in the image?")
    assert (talk.attention() != first).any()


def test_the_tool_answers_and_tells_what_is_wrong(tiny_run, picture, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    Image.new("L", (5, 9)).save(tmp_path / "small.png")
    lines = [
        "/map",
        "/image",
        f"/image {tmp_path / 'text.png'}",
        f"/image {tmp_path / 'missing.png'}",
        f"/image {tmp_path / 'small.png'}",
        f"/image {picture}",
        QUESTION,
        f"/map {tmp_path / 'map.png'}",
        "word " * 600,
        "/picture x",
        "/clear",
        "/quit",
        "never read",
    ]
    command = [sys.executable, "tools/chat.py", str(tiny_run), "--device", "cpu", "--max-new-tokens", "4"]
    done = subprocess.run(
        command, cwd=ROOT, env=tiny_env(), input="\n".join(lines), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    out = done.stdout.splitlines()
    assert "error: no image yet: show one first" in out
    assert "/image: expected /image PATH" in out
    assert any(line.startswith("error: ") and "text.png cannot be read" in line for line in out)
    assert any(line.startswith("error: ") and "missing.png is missing" in line for line in out)
    assert f"{tmp_path / 'small.png'}: 5 x 9 pixels" in out
    assert any("positions; shorten it" in line for line in out)
    assert "/picture: unknown; expected /image PATH, /map [FILE], /clear or /quit" in out
    assert Image.open(tmp_path / "map.png").width > 300 and "never read" not in done.stdout
