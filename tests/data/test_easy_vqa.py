import sys
from collections import Counter

import pytest
from data_helpers import byte_level

from asvr.data.batch import IGNORE, IMAGE_TOKEN
from asvr.data.easy_vqa import KINDS, EasyVQA, question_kind
from asvr.data.images import open_image
from asvr.registry import DATASETS

easy_vqa = pytest.importorskip("easy_vqa", reason="the extra 'mini' is not installed")


def pairs(dataset):
    """(image, question, answer) of every round."""
    for i in range(len(dataset)):
        record = dataset.record(i)
        turns = [m["value"].removeprefix("<image>\n") for m in record["conversations"]]
        yield from zip([record.get("image")] * (len(turns) // 2), turns[::2], turns[1::2], strict=True)


@pytest.mark.parametrize("split, num_images, questions", [("train", 4000, 38575), ("test", 1000, 9673)])
@pytest.mark.parametrize("turns", [1, 4])
def test_the_official_split_is_whole(split, num_images, questions, turns):
    texts, answers, images = getattr(easy_vqa, f"get_{split}_questions")()
    found = list(pairs(EasyVQA(split=split, turns=turns)))
    assert len(found) == questions and len({image for image, _, _ in found}) == num_images
    assert Counter(found) == Counter(zip(map(str, images), texts, answers, strict=True))


def test_rows_without_shuffling_follow_the_package():
    texts, answers, images = easy_vqa.get_test_questions()
    by_name = sorted(zip(images, range(len(images)), texts, answers, strict=True))
    expected = [(str(image), text, answer) for image, _, text, answer in by_name]
    assert list(pairs(EasyVQA(split="test", seed=None))) == expected


def test_a_conversation_shows_its_picture_once():
    dataset = EasyVQA(split="test", turns=3)
    sizes = Counter(len(dataset.record(i)["conversations"]) // 2 for i in range(len(dataset)))
    assert set(sizes) == {1, 2, 3} and sizes[3] > sizes[1] + sizes[2]
    for i in range(len(dataset)):
        marks = ["<image>" in m["value"] for m in dataset.record(i)["conversations"]]
        assert marks == [True] + [False] * (len(marks) - 1)


def test_order_of_questions_depends_on_the_seed_alone():
    first, again, other = (EasyVQA(split="test", turns=2, seed=s).records for s in (1, 1, 2))
    assert first == again != other


def test_blind_rows_ask_the_same_without_a_picture():
    blind, sighted = (EasyVQA(split="test", with_images=see) for see in (False, True))
    assert [p[1:] for p in pairs(blind)] == [p[1:] for p in pairs(sighted)]
    assert not list(blind.images()) and len(list(sighted.images())) == 1000


def test_pictures_alone():
    options = dict(tokenizer=byte_level(), template="vicuna_v1", max_length=90, num_image_tokens=49)
    config = dict(type="EasyVQA", split="test", image_only=True, max_images=5)
    dataset = DATASETS.build(config, default_args=options)
    assert len(dataset) == 5
    item = dataset[3]
    assert item["input_ids"] == [byte_level().bos_id, IMAGE_TOKEN] and set(item["labels"]) == {IGNORE}
    assert item["image_keys"] == ["easy-vqa/test/3"] and open_image(item["images"][0]).size == (64, 64)


def test_every_question_has_a_kind_and_the_answers_of_its_kind():
    answers = {}
    for question, answer in zip(*easy_vqa.get_train_questions()[:2], strict=True):
        answers.setdefault(question_kind(question), set()).add(answer)
    shapes = {"circle", "rectangle", "triangle"}
    assert set(answers) == set(KINDS) and answers["shape"] == shapes
    assert answers["color"] == set(easy_vqa.get_answers()) - shapes - {"yes", "no"}
    assert all(answers[kind] == {"yes", "no"} for kind in KINDS[2:])
    assert question_kind("is there not a teal shape?") == "lacks color"
    assert question_kind("does the image contain a circle?") == "has shape"
    assert question_kind("what is the teal shape?") == "shape"


def test_texts_feed_a_tokenizer():
    plain = list(EasyVQA(split="test", max_images=2).texts())
    assert len(plain) == 2 * len(EasyVQA(split="test", max_images=2)) and "<image>" not in "".join(plain)
    rendered = "".join(EasyVQA(split="test", max_images=2).texts("vicuna_v1"))
    assert "USER: " in rendered and " ASSISTANT:" in rendered


@pytest.mark.parametrize(
    "options, text",
    [(dict(split="val"), "'val'"), (dict(turns=0), "turns=0"), (dict(image_only=True, with_images=False), "empty")],
)
def test_mistakes_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        EasyVQA(**options)


def test_a_missing_package_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(ValueError, match=r"pip install 'asvr\[mini\]'"):
        EasyVQA()


def test_the_old_name_of_max_images_goes_on_working(caplog):
    old, new = EasyVQA(split="test", max_pictures=3), EasyVQA(split="test", max_images=3)
    assert len(old) == len(new) and old.fingerprint() == new.fingerprint()
    assert "max_pictures is now called max_images" in caplog.text
    with pytest.raises(ValueError, match="old name of max_images"):
        EasyVQA(split="test", max_pictures=3, max_images=3)
