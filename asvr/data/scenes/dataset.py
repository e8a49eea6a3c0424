"""The dataset of generated scenes."""

import random
from collections.abc import Iterable
from functools import partial

from asvr.data.image_sources import RenderedImage, Source
from asvr.data.records import ConversationDataset
from asvr.data.scenes import questions
from asvr.data.scenes.photos import photos
from asvr.data.scenes.scene import make_scene, paint, painter
from asvr.data.scenes.sprites import DRAWINGS, PHOTO, groups
from asvr.data.templates import IMAGE_MARK
from asvr.registry import DATASETS

HELD_OUT = DRAWINGS[-1]
SPLITS = dict(train=DRAWINGS[:-1], test=(HELD_OUT,), photos=(PHOTO,))
PHOTOS = "photos"
DESCRIBE = "what is in the picture?"


@DATASETS.register_module()
class Scenes(ConversationDataset):
    """Generated images of two to four objects and two letters, with questions; the same arguments give the same data.

    split: ``train`` uses two of three sets of drawings. ``test`` uses the third: known objects in unseen images.
    ``photos`` shows photographs of other objects, see `asvr.data.scenes.photos`, and asks for no names. scenes: the
    number of scenes. per_scene: the number of questions for a scene, of different random kinds; None: one of every kind
    that the scene allows. turns: if above 1, the most questions of a record; none of them gives away the answer of
    another. kinds: use only these kinds, see `asvr.data.scenes.questions.MAKERS`; []: no questions. captions: add one
    record for each scene that describes what is where. describe: end each conversation with that description.
    with_text: only this many scenes, the first ones, have records with text; each other scene is a record with only its
    image. with_images: False leaves the images out, for a blind model. in_words: tell the whole scene in words before
    the first question, see `asvr.data.scenes.questions.told`. concepts: the number of objects; each group keeps its
    share. size: the side of an image in pixels. The category of a question is its kind. For the other arguments see
    `asvr.data.records.ConversationDataset`.

    Raises: ValueError if an argument is out of range.
    """

    def __init__(
        self,
        *,
        split: str = "train",
        scenes: int = 5000,
        per_scene: int | None = 1,
        turns: int = 1,
        kinds: list[str] | None = None,
        captions: bool = False,
        describe: bool = False,
        with_text: int | None = None,
        with_images: bool = True,
        in_words: bool = False,
        concepts: int | None = None,
        size: int = 128,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        names_objects = captions or describe or in_words
        self._check(split, scenes, per_scene, turns, kinds, names_objects, with_text, with_images, concepts, size)
        self.source, self.split, self.size = f"scenes/{split}", split, size
        self.with_images, self.in_words = with_images, in_words
        self.made = f"{self.source} seed={seed} concepts={concepts} size={size}"
        self.names = list(photos()) if split == PHOTOS else some_names(concepts)
        self.per_scene, self.turns, self.captions, self.describe = per_scene, turns, captions, describe
        self.kinds = list(_kinds(split)) if kinds is None else kinds
        self.scenes = [
            make_scene(random.Random(f"{seed} {split} scene {i}"), self.names, SPLITS[split]) for i in range(scenes)
        ]
        texts = scenes if with_text is None else min(with_text, scenes)
        self.records = [
            record
            for i in range(scenes)
            for record in (
                self._with_text(i, random.Random(f"{seed} {split} text {i}")) if i < texts else [dict(image=str(i))]
            )
        ]

    @staticmethod
    def _check(split, scenes, per_scene, turns, kinds, names_objects, with_text, with_images, concepts, size) -> None:
        if split not in SPLITS:
            raise ValueError(f"Scenes: split={split!r}: expected one of {', '.join(SPLITS)}")
        unknown = set(kinds or []) - set(_kinds(split))
        if unknown:
            raise ValueError(f"Scenes: kinds={sorted(unknown)} are unknown: expected some of {list(_kinds(split))}")
        if with_text is not None and not with_images:
            raise ValueError("Scenes: with_images=False leaves the records beyond with_text empty: set one of the two")
        limits = dict(scenes=(scenes, 1), per_scene=(per_scene, 1), with_text=(with_text, 0), size=(size, 32))
        limits |= dict(concepts=(concepts, 20), turns=(turns, 1))
        for name, (value, least) in limits.items():
            if value is not None and value < least:
                raise ValueError(f"Scenes: {name}={value}: expected at least {least}")
        if turns > 1 and per_scene is None:
            raise ValueError(f"Scenes: turns={turns} needs per_scene, the number of conversations for a scene")
        if split == PHOTOS and (concepts is not None or names_objects):
            raise ValueError(
                "Scenes: split='photos' has no names of objects: leave out concepts, captions, describe and in_words"
            )
        if concepts is not None and concepts > len(groups()):
            raise ValueError(f"Scenes: concepts={concepts}: expected at most {len(groups())}")

    def _with_text(self, i: int, rng: random.Random) -> list[dict]:
        """The records of a scene that has text."""
        asked = {k: pair for k, pair in questions.ask(self.scenes[i], rng, self.names).items() if k in self.kinds}
        if self.per_scene is None:
            chosen = [[kind] for kind in asked]
        elif self.turns > 1:
            chosen = [questions.in_turns(self.scenes[i], asked, rng, self.turns) for _ in range(self.per_scene)]
        else:
            chosen = [[kind] for kind in rng.sample(list(asked), min(self.per_scene, len(asked)))]
        described = [(DESCRIBE, questions.caption(self.scenes[i]))]
        last = described if self.describe else []
        records = [
            self._record(i, [asked[kind] for kind in kinds] + last, " ".join(kinds)) for kinds in chosen if kinds
        ]
        return records + ([self._record(i, described, "caption")] if self.captions else [])

    def _record(self, i: int, turns: list[questions.Pair], category: str) -> dict:
        mark = f"{IMAGE_MARK}\n" if self.with_images else ""
        mark += f"{questions.told(self.scenes[i])}\n" if self.in_words else ""
        messages = []
        for question, answer in turns:
            messages += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
            mark = ""
        return (dict(image=str(i)) if self.with_images else {}) | dict(category=category, conversations=messages)

    def __len__(self) -> int:
        return len(self.records)

    def record(self, i: int) -> dict:
        return self.records[i]

    def image(self, name: str) -> tuple[str, Source]:
        key, scene = f"{self.made}/{name}", self.scenes[int(name)]
        if self.split == PHOTOS:  # the files of the photographs may change
            return key, paint(scene, self.size)
        return key, RenderedImage(f"{key} {painter()}", partial(paint, scene, self.size))


def _kinds(split: str) -> Iterable[str]:
    return questions.PHOTO_KINDS if split == PHOTOS else questions.MAKERS


def some_names(concepts: int | None) -> list[str]:
    """``concepts`` objects: each group has its share, evenly spaced in the group. None: all."""
    names = list(groups())
    if concepts is None:
        return names
    ordered = sorted(names, key=lambda name: groups()[name])
    return [ordered[i * len(ordered) // concepts] for i in range(concepts)]
