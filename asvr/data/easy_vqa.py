"""The dataset easy-vqa: 5,000 images of one shape and 48,248 questions, from its package (MIT, Victor Zhou)."""

import importlib
import logging
import random
import re
from pathlib import Path

from asvr.data.records import ConversationDataset
from asvr.data.templates import IMAGE_MARK
from asvr.registry import DATASETS

SPLITS = ("train", "test")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
KINDS = ("color", "shape", "has color", "has shape", "lacks color", "lacks shape")

logger = logging.getLogger("asvr")


def question_kind(question: str) -> str:
    """The kind of a question, one of ``KINDS``.

    It asks for a color, for a shape (with or without its color), or whether the image has or lacks a color or shape."""
    if question.startswith(("what color", "what is the color")):
        return "color"
    if question.startswith("what"):
        return "shape"
    about = "color" if any(color in question.split() for color in COLORS) else "shape"
    return f"lacks {about}" if re.search(r"\b(not|no)\b", question) else f"has {about}"


@DATASETS.register_module()
class EasyVQA(ConversationDataset):
    """The dataset easy-vqa: questions about coloured shapes, in its official split.

    It has 4,000 training images with 38,575 questions, and 1,000 test images with 9,673.

    split: ``train`` or ``test``. turns: the number of questions of a conversation; the last one of an image may have
    fewer. A record of one question has the kind of the question as ``category``. image_only: one record for each image,
    without a conversation. with_images: False leaves the images out, for a blind model. seed: the seed that
    shuffles the questions of an image before they are split into conversations. None keeps the order of the package.
    max_images: use only the first images. max_pictures: the old name of ``max_images``.

    For the other arguments see `asvr.data.records.ConversationDataset`.

    Raises: ValueError if the package is not installed or an argument is not valid.
    """

    def __init__(
        self,
        *,
        split: str = "train",
        turns: int = 1,
        image_only: bool = False,
        with_images: bool = True,
        seed: int | None = 0,
        max_images: int | None = None,
        max_pictures: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if split not in SPLITS:
            raise ValueError(f"EasyVQA: split={split!r}: expected one of {', '.join(map(repr, SPLITS))}")
        if turns < 1:
            raise ValueError(f"EasyVQA: turns={turns}: expected at least 1, the questions of a conversation")
        if image_only and not with_images:
            raise ValueError("EasyVQA: image_only=True and with_images=False leave records empty: set one of them")
        self.source = f"easy-vqa/{split}"
        package = _package()
        paths = getattr(package, f"get_{split}_image_paths")()
        if max_pictures is not None:
            if max_images is not None:
                raise ValueError("EasyVQA: max_pictures is the old name of max_images; give max_images alone")
            logger.warning("EasyVQA: max_pictures is now called max_images; the old name still works")
            max_images = max_pictures
        self.paths = {str(image): Path(paths[image]) for image in sorted(paths)[:max_images]}
        if image_only:
            self.records = [dict(image=name) for name in self.paths]
        else:
            questions = self._questions(getattr(package, f"get_{split}_questions")())
            self.records = self._conversations(questions, turns, seed, with_images)

    def _questions(self, columns: tuple[list, list, list]) -> dict[str, list[tuple[str, str]]]:
        """Image name -> its questions and answers, in the order of the package."""
        by_name = {name: [] for name in self.paths}
        for question, answer, image in zip(*columns, strict=True):
            if str(image) in by_name:
                by_name[str(image)].append((question, answer))
        return by_name

    def _conversations(self, by_name: dict, turns: int, seed: int | None, with_images: bool) -> list[dict]:
        records = []
        for name, pairs in by_name.items():
            if seed is not None:
                random.Random(f"{seed} {self.source} {name}").shuffle(pairs)
            for first in range(0, len(pairs), turns):
                chosen = pairs[first : first + turns]
                record = dict(image=name) if with_images else {}
                if len(chosen) == 1:
                    record["category"] = question_kind(chosen[0][0])
                records.append(record | dict(conversations=_messages(chosen, with_images)))
        return records

    def __len__(self) -> int:
        return len(self.records)

    def record(self, i: int) -> dict:
        return self.records[i]

    def image(self, name: str) -> tuple[str, Path]:
        return f"{self.source}/{name}", self.paths[name]


def _messages(pairs: list[tuple[str, str]], with_images: bool) -> list[dict]:
    messages = []
    for i, (question, answer) in enumerate(pairs):
        mark = f"{IMAGE_MARK}\n" if with_images and i == 0 else ""
        messages += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
    return messages


def _package():
    try:
        return importlib.import_module("easy_vqa")
    except ModuleNotFoundError as error:
        raise ValueError("EasyVQA needs the package easy-vqa: pip install 'asvr[mini]'") from error
