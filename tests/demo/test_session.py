"""What the web page does: messages instead of errors, sessions apart from one another, one at a time on the model."""

import threading
import time
from concurrent.futures import CancelledError

import pytest
from demo_helpers import BOTH, broken_files, gradient, pretrained

import asvr.demo.session as demo_module
from asvr.data.images import open_image
from asvr.data.refusals import Refused
from asvr.demo.session import Demo, Session, pieces, read_upload

QUESTION = "what is it?"


def show(demo: Demo, session: Session, file):
    return demo.show(session, read_upload(file))


@pytest.fixture(scope="module")
def demo():
    return Demo(pretrained(), max_new_tokens=6)


@pytest.fixture
def file(tmp_path):
    gradient().save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def test_an_answer_and_what_it_looks_at(demo, file):
    session = demo.session()
    show(demo, session, file)
    told = list(demo.ask(session, QUESTION))
    assert len(told) > 1
    assert "".join(told).strip() == demo.pretrained.chat(file, QUESTION, max_new_tokens=6)
    (seen, mean), (_, first) = (demo.attention_panels(session, layer) for layer in (None, 0))
    assert seen.image == session.seen and mean.image.size == first.image.size and mean.image != first.image
    heads, (pixels,) = demo.target_panels(session)
    assert len(heads) == 2 * (3 + 1) and len(pixels) == 3


def test_a_tab_keeps_no_more_of_a_picture_than_it_needs(demo, tmp_path, monkeypatch):
    assert demo.kept_side == demo_module.KEPT_SIDE  # the model takes little
    monkeypatch.setattr(demo_module, "KEPT_SIDE", 16)
    demo = Demo(demo.pretrained)
    side = 4 * max(max(view.size) for view in demo.pretrained.model.views().values())
    large, small = tmp_path / "large.png", tmp_path / "small.png"
    gradient(2 * side, side).save(large)
    gradient(side, side // 2).save(small)
    session = demo.session()
    assert show(demo, session, large).size == session.talk.images[0].size == (side, side // 2)
    assert show(demo, session, small) == session.talk.images[1] == open_image(small)


def test_uploads_are_pictures_that_people_have(tmp_path):
    for suffix in ("png", "jpg", "webp", "bmp", "gif", "tif", "mpo"):
        gradient().save(tmp_path / f"image.{suffix}")
        assert read_upload(tmp_path / f"image.{suffix}").size == (40, 30)
    for suffix in ("ico", "icns", "eps"):
        gradient().save(tmp_path / f"image.{suffix}")
        with pytest.raises(Refused, match=f"image.{suffix} cannot be read: it is none of"):
            read_upload(tmp_path / f"image.{suffix}")


def test_a_question_can_stand_alone(demo):
    session = demo.session()
    assert demo.attention_panels(session, None) == []
    assert "".join(demo.ask(session, QUESTION)).strip() == demo.pretrained.chat(None, QUESTION, max_new_tokens=6)
    assert demo.attention_panels(session, None) == []


def test_each_question_has_its_own_attention(demo, file):
    session = demo.session()
    show(demo, session, file)
    list(demo.ask(session, QUESTION))
    demo.attention_panels(session, None)
    before = session.attention
    list(demo.ask(session, "a"))
    demo.attention_panels(session, None)
    assert (session.attention != before).any()


@pytest.mark.parametrize("question", ["", "  \n", "<image>", "word " * 200])
def test_a_question_that_cannot_be_asked_leaves_the_conversation_as_it_was(demo, file, question):
    session = demo.session()
    show(demo, session, file)
    list(demo.ask(session, QUESTION))
    before = list(session.talk.messages)
    with pytest.raises(ValueError, match="write a question first|question is empty|positions; shorten it"):
        list(demo.ask(session, question))
    assert session.talk.messages == before
    assert "".join(demo.ask(session, "a"))


def test_a_bad_upload_is_told_in_one_line_without_our_folders(tmp_path):
    for name, file in broken_files(tmp_path).items():
        with pytest.raises(Refused) as error:
            read_upload(file)
        assert name in str(error.value) and str(tmp_path) not in str(error.value) and "\n" not in str(error.value)


def test_a_model_without_targets_or_with_one_that_does_not_decode(file):
    for entries, has_heads in (((), False), (BOTH[:1], True)):
        demo = Demo(pretrained(reconstruction=entries), max_new_tokens=6)
        session = demo.session()
        show(demo, session, file)
        heads, pixels = demo.target_panels(session)
        assert bool(heads) == has_heads and pixels == []
        list(demo.ask(session, "a"))
        assert session.talk.messages and demo.attention_panels(session, 1)


def test_a_model_without_a_text_tokenizer_is_refused():
    own = pretrained()
    own.text_tokenizer = None
    with pytest.raises(ValueError, match="--text-tokenizer"):
        Demo(own)


def test_sessions_share_the_model_one_at_a_time(file, monkeypatch):
    demo, inside, most = Demo(pretrained(), max_new_tokens=3), [], []
    generate = type(demo.pretrained).generate

    def watched(*args, **kwargs):
        inside.append(1)
        time.sleep(0.05)
        most.append(len(inside))
        answer = generate(*args, **kwargs)
        inside.pop()
        return answer

    monkeypatch.setattr(type(demo.pretrained), "generate", watched)
    sessions = [demo.session() for _ in range(3)]
    show(demo, sessions[0], file)
    threads = [
        threading.Thread(target=lambda own=own, i=i: list(demo.ask(own, f"q{i}"))) for i, own in enumerate(sessions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
    questions = [own.talk.messages[0]["value"] for own in sessions]
    assert questions == ["<image>\nq0", "q1", "q2"]


def test_pieces_come_as_they_are_told_and_errors_too():
    def work(tell):
        tell("a")
        tell("b")
        raise ValueError("no more")

    source = pieces(work)
    assert [next(source), next(source)] == ["a", "b"]
    with pytest.raises(ValueError, match="no more"):
        next(source)


def test_work_ends_where_nobody_listens():
    ended = []

    def work(tell):
        try:
            while True:
                tell("word")
                time.sleep(0.01)
        except CancelledError:
            ended.append(True)
            raise

    source = pieces(work)
    assert next(source) == "word"
    source.close()
    assert ended == [True]
