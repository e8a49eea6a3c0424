"""Scenes: what is asked is what is painted, and a blind reader cannot tell."""

import random
from collections import Counter, defaultdict

import numpy as np
import pytest
from data_helpers import byte_level
from PIL import Image

from asvr.data.images import open_image
from asvr.data.scenes import Scenes
from asvr.data.scenes.dataset import some_names
from asvr.data.scenes.facts import TRUE_OF, UNSURE_OF
from asvr.data.scenes.photos import photo, photos
from asvr.data.scenes.questions import MAKERS, UNNAMED, ask, caption, in_turns, told
from asvr.data.scenes.scene import BACKGROUNDS, COLORS, PLACES, Scene, Thing, make_scene, paint
from asvr.data.scenes.sprites import DRAWINGS, groups, sprite

CAT = Thing(name="cat", drawing="noto", place=0, color="red", pose="upright", size="small")
PEAR = Thing(name="pear", drawing="noto", place=3, color="blue", pose="upside down", size="large")
SCENE = Scene((CAT, PEAR), "AB", 0)
NAMES = ["cat", "pear", "bus"]


def answers(scene, tries=200):
    """kind -> the pairs that chance makes of a scene."""
    made = defaultdict(set)
    for seed in range(tries):
        for kind, pair in ask(scene, random.Random(seed), NAMES).items():
            made[kind].add(pair)
    return made


def test_every_question_about_a_scene_has_its_answer():
    assert answers(SCENE) == {
        "what": {("what is at the top left?", "cat"), ("what is at the bottom right?", "pear")},
        "kind": {
            ("which kind of thing is at the top left?", "animal"),
            ("which kind of thing is at the bottom right?", "food"),
        },
        "count": {("how many of the things are small?", "1")},
        "word": {("which letters are in the middle?", "AB")},
        "knowledge": {("which of these is a fruit?", "pear")},
        "where": {("where is the cat?", "top left"), ("where is the pear?", "bottom right")},
        "left_of": {
            ("which is further left, the cat or the pear?", "cat"),
            ("which is further left, the pear or the cat?", "cat"),
        },
        "larger": {
            ("which is larger, the cat or the pear?", "pear"),
            ("which is larger, the pear or the cat?", "pear"),
        },
        "color": {
            ("what color is the plate at the top left?", "red"),
            ("what color is the plate at the bottom right?", "blue"),
        },
        "pose": {
            ("how does the thing at the top left stand?", "upright"),
            ("how does the thing at the bottom right stand?", "upside down"),
        },
        "exists": {("is there a cat?", "yes"), ("is there a pear?", "yes"), ("is there a bus?", "no")},
        "there": {
            (f"which is there, the {pair[0]} or the {pair[1]}?", shown)
            for shown in ("cat", "pear")
            for pair in ((shown, "bus"), ("bus", shown))
        },
        "plate": {
            (f"which plate is there, the {pair[0]} or the {pair[1]} one?", shown)
            for shown in ("red", "blue")
            for other in COLORS.keys() - {"red", "blue"}
            for pair in ((shown, other), (other, shown))
        },
    }
    assert caption(SCENE) == "top left cat, bottom right pear"


def test_no_two_questions_of_a_conversation_name_one_object():
    dataset = Scenes(scenes=60, turns=6)
    longest = 0
    for scene, record in zip(dataset.scenes, dataset.records, strict=True):
        kinds = record["category"].split()
        said = [message["value"] for message in record["conversations"]]
        rounds = [" ".join(said[2 * i : 2 * i + 2]) for i in range(len(kinds))]
        assert len(said) == 2 * len(kinds) and len(set(kinds)) == len(kinds) <= 6
        assert [text.count("<image>") for text in rounds] == [1] + [0] * (len(kinds) - 1)
        longest = max(longest, len(kinds))
        told = [text for kind, text in zip(kinds, rounds, strict=True) if kind not in UNNAMED]
        for thing in scene.things:
            mentions = [text for text in told if thing.name in text or PLACES[thing.place] in text]
            assert len(mentions) <= 1, (thing, mentions)
        plates = [text for text in rounds if "plate" in text]
        assert all(sum(color in text for text in plates) <= 1 for color in COLORS), plates
    assert longest == 6


def test_no_two_questions_of_a_conversation_name_one_absent_object():
    """Of "is there a bus? no" and "which is there, the cat or the bus?" one tells the other's answer."""
    both = 0
    for record in Scenes(scenes=400, turns=2, kinds=["exists", "there"], concepts=20).records:
        questions = [message["value"].removesuffix("?") for message in record["conversations"][::2]]
        if len(questions) == 2:
            exists, there = sorted(questions, key=lambda question: "which" in question)
            both += 1
            assert exists.split("is there a ")[1] not in there.split(", the ")[1].split(" or the ")
    assert both > 100
    asked = dict(exists=("is there a bird?", "no"), there=("which is there, the black bird or the cat?", "cat"))
    assert all(len(in_turns(SCENE, asked, random.Random(seed), 2)) == 1 for seed in range(10))


def test_what_may_be_said_to_be_there_is_not_named_as_absent():
    bird = Scene((Thing(**(vars(CAT) | dict(name="black bird"))),), "AB", 0)
    made = {ask(bird, random.Random(seed), ["bird", "black bird", "bus"])["there"] for seed in range(20)}
    assert {question.count("bus") for question, _ in made} == {1}


def test_a_conversation_may_end_with_the_caption():
    plain, described = (Scenes(scenes=20, turns=3, describe=describe) for describe in (False, True))
    for scene, short, long in zip(plain.scenes, plain.records, described.records, strict=True):
        assert long["category"] == short["category"] and long["conversations"][:-2] == short["conversations"]
        assert long["conversations"][-1]["value"] == caption(scene)


def test_what_has_no_answer_is_not_asked():
    twins = Scene((CAT, Thing(name="cat", drawing="noto", place=1, color="red", pose="upright", size="large")), "AB", 0)
    assert answers(twins).keys() == MAKERS.keys() - {"where", "left_of", "larger", "knowledge"}
    doubtful = Scene(
        (Thing(name="tomato", drawing="noto", place=1, color="red", pose="upright", size="large"), PEAR), "A", 0
    )
    assert "knowledge" not in answers(doubtful)


def test_facts_are_about_objects_that_exist():
    for phrase, names in TRUE_OF.items():
        assert names and names | UNSURE_OF[phrase] <= groups().keys() and not names & UNSURE_OF[phrase], phrase


def test_the_picture_shows_what_is_told():
    """Plates of the told colours in the told cells, none elsewhere; another pose or size is another image."""
    for seed in range(20):
        scene = make_scene(random.Random(seed), list(groups()), DRAWINGS)
        pixels = np.asarray(paint(scene, 128))
        for place in range(len(PLACES)):
            row, column = divmod(place, 2)
            cell = pixels[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64].reshape(-1, 3)
            colors = {name: (cell == color).all(1).mean() for name, color in COLORS.items()}
            told = [thing.color for thing in scene.things if thing.place == place]
            if told:
                assert colors[told[0]] > 0.05, (seed, place)
            else:
                assert (cell == np.asarray(BACKGROUNDS)[:, None]).all(2).any(0).mean() > 0.8
    changed = [dict(pose="upright"), dict(size="small"), dict(name="bus"), dict(color="pink"), dict(drawing="fluent")]
    pictures = [SCENE, *(Scene((CAT, Thing(**(vars(PEAR) | change))), "AB", 0) for change in changed)]
    pictures += [Scene((CAT, PEAR), "AC", 0)]
    assert len({paint(scene, 128).tobytes() for scene in pictures}) == len(pictures)


def test_every_object_has_three_drawings():
    for name in groups():
        drawn = {sprite(name, drawing).tobytes() for drawing in DRAWINGS}
        assert len(drawn) == len(DRAWINGS), name


def test_the_test_split_has_a_drawing_that_training_never_shows():
    found = {}
    for split in ("train", "test"):
        dataset = Scenes(split=split, scenes=200)
        found[split] = {thing.drawing for scene in dataset.scenes for thing in scene.things}
    assert found == dict(train={"twemoji", "fluent"}, test={"noto"})


def test_the_same_arguments_make_the_same_dataset():
    options = dict(scenes=30, per_scene=3, captions=True)
    first, again, other = (Scenes(seed=seed, **options) for seed in (1, 1, 2))
    assert first.records == again.records != other.records
    (key, picture), (same_key, same), (other_key, _) = (d.image("7") for d in (first, again, other))
    assert open_image(picture).tobytes() == open_image(same).tobytes() and key == same_key != other_key
    assert picture.content == same.content != again.image("8")[1].content
    longer = Scenes(seed=1, **dict(options, scenes=40))
    assert longer.records[: len(first.records)] == first.records


def test_chance_alone_says_little():
    """What a blind model could learn: the most frequent answer is not much more frequent than the others."""
    dataset = Scenes(scenes=2000, per_scene=None)
    by_kind = defaultdict(Counter)
    for record in dataset.records:
        by_kind[record["category"]][record["conversations"][1]["value"]] += 1
    shares = {kind: max(counts.values()) / counts.total() for kind, counts in by_kind.items()}
    limits = dict(exists=0.54, plate=0.16, where=0.29, pose=0.29, color=0.16, count=0.54, kind=0.3)
    assert all(shares[kind] < limit for kind, limit in limits.items()), shares
    assert all(shares[kind] < 0.05 for kind in by_kind.keys() - limits.keys()), shares


def test_of_two_that_are_named_either_is_right_as_often():
    """Neither the one named first, nor the one that questions name more often."""
    first, named, right = Counter(), Counter(), Counter()
    for record in Scenes(
        scenes=3000, per_scene=None, concepts=20, kinds=["left_of", "larger", "there", "plate"]
    ).records:
        kind, (question, answer) = record["category"], [message["value"] for message in record["conversations"]]
        a, b = question.removesuffix("?").removesuffix(" one").split(", the ")[1].split(" or the ")
        assert answer in (a, b) and a != b
        first[kind] += answer == a
        named.update((kind, name) for name in (a, b))
        right[kind, answer] += 1
    for kind in first:
        total = sum(count for (k, _), count in right.items() if k == kind)
        assert abs(first[kind] / total - 0.5) < 0.05, (kind, first)
        for name in {name for k, name in named if k == kind}:
            assert abs(right[kind, name] / named[kind, name] - 0.5) < 0.13, (kind, name)


def test_yes_and_no_stay_balanced_in_a_conversation():
    """`exists` is drawn first, or it would be left out more often where the answer is yes."""
    answers = Counter()
    for record in Scenes(scenes=1500, turns=4).records:
        texts = [message["value"] for message in record["conversations"]]
        answers.update(a for q, a in zip(texts[::2], texts[1::2], strict=True) if "is there a" in q)
    assert answers.total() == 1500 and abs(answers["yes"] / 1500 - 0.5) < 0.04, answers


def test_pictures_are_painted_when_they_are_opened(monkeypatch):
    """A cache of their features needs none of them."""
    monkeypatch.setattr("asvr.data.scenes.dataset.paint", lambda *_: pytest.fail("painted"))
    dataset = Scenes(scenes=20)
    contents = {picture.sha256() for _, picture in dataset.images()}
    assert len(contents) == 20 and len({p.sha256() for _, p in Scenes(scenes=20, size=64).images()} - contents) == 20


def test_records():
    dataset = Scenes(scenes=10, per_scene=2, captions=True, with_text=4)
    assert len(dataset) == 4 * 3 + 6
    assert dataset.record(2)["conversations"][0]["value"] == "<image>\nwhat is in the picture?"
    assert dataset.record(12) == dict(image="4") and len(list(dataset.images())) == 10
    assert {r["category"] for r in Scenes(scenes=20, kinds=["pose"]).records} == {"pose"}
    blind = Scenes(scenes=10, per_scene=2, captions=True, with_images=False)
    assert not list(blind.images()) and len(blind) == 30
    words = Scenes(scenes=10, per_scene=2, captions=True, with_images=False, in_words=True)
    values = [record["conversations"][0]["value"] for record in words.records]
    assert [value.split("\n")[1] for value in values] == [r["conversations"][0]["value"] for r in blind.records]
    assert "image" not in words.record(0) and not list(words.images())
    both = Scenes(scenes=1, in_words=True).record(0)["conversations"][0]["value"]
    assert both.split("\n")[:2] == ["<image>", values[0].split("\n")[0]]
    item = Scenes(scenes=3, tokenizer=byte_level(), template="vicuna_v1").question(0)
    assert open_image(item["images"][0]).size == (128, 128) and item["answer"]


def test_a_scene_in_words_has_what_questions_ask_for():
    for i, scene in enumerate(Scenes(scenes=50, concepts=40).scenes):
        text, asked = told(scene), ask(scene, random.Random(i), some_names(40))
        parts = text.split(", ")
        assert len(parts) == len(scene.things) + 1 and parts[-1] == f"middle letters {scene.word}"
        assert asked["count"][1] == str(text.count(" small "))
        for kind in ("what", "knowledge", "left_of", "there", "color", "pose", "plate", "where"):
            assert kind not in asked or asked[kind][1] in text, kind


def test_fewer_concepts_are_of_all_groups():
    dataset = Scenes(scenes=5, concepts=60)
    assert len(set(dataset.names)) == 60 and {groups()[name] for name in dataset.names} == set(groups().values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(split="val"), "Scenes: split='val': expected one of train, test"),
        (dict(kinds=["hue"]), r"kinds=\['hue'\] are unknown"),
        (dict(scenes=0), "scenes=0: expected at least 1"),
        (dict(concepts=500), "concepts=500: expected at most 487"),
        (dict(with_text=3, with_images=False), "leaves the records beyond with_text empty"),
    ],
)
def test_wrong_arguments_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        Scenes(**options)


@pytest.fixture
def stamps(tmp_path, monkeypatch):
    """A folder as Tux Paint's: photographs of four animals and a fruit, and a drawing."""
    rng = np.random.default_rng(0)
    animals = {f"animals/{name}.png": 256 for name in ("cow", "dog", "fox", "pig")}
    for name, shades in {**animals, "animals/cat.png": 1, "food/fruit/pear.png": 256}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, shades, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.setattr("asvr.data.scenes.photos.STAMPS", tmp_path)
    photos.cache_clear()
    photo.cache_clear()
    yield tmp_path
    photos.cache_clear()
    photo.cache_clear()


def test_photographs_are_asked_about_without_their_names(stamps):
    animals = {f"animals/{name}.png": "animal" for name in ("cow", "dog", "fox", "pig")}
    assert photos() == {**animals, "food/fruit/pear.png": "food"}
    dataset = Scenes(split="photos", scenes=10, per_scene=None)
    kinds = Counter(record["category"] for record in dataset.records)
    assert kinds == dict.fromkeys(("kind", "count", "word", "color", "pose", "plate"), 10)
    for record in dataset.records:
        if record["category"] == "kind":
            place = record["conversations"][0]["value"].removesuffix("?").split(" at the ")[1]
            (thing,) = [t for t in dataset.scenes[int(record["image"])].things if PLACES[t.place] == place]
            assert record["conversations"][1]["value"] == photos()[thing.name]
    assert open_image(dataset.image("0")[1]).size == (128, 128)


def test_photographs_that_are_not_there_or_not_named_are_an_error(stamps, monkeypatch):
    with pytest.raises(ValueError, match="kinds=.'where'. are unknown: expected some of .'kind'"):
        Scenes(split="photos", kinds=["where"])
    with pytest.raises(ValueError, match="split='photos' has no names"):
        Scenes(split="photos", captions=True)
    photos.cache_clear()
    monkeypatch.setattr("asvr.data.scenes.photos.STAMPS", stamps / "none")
    with pytest.raises(ValueError, match="apt install tuxpaint-stamps-default"):
        Scenes(split="photos", scenes=1)
