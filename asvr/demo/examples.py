"""Images and questions that the page offers to click."""

import itertools
import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from asvr.data.conversation import parse_rounds
from asvr.data.image_sources import Source
from asvr.data.refusals import Refused
from asvr.data.templates import IMAGE_MARK
from asvr.demo.session import read_upload
from asvr.recipe.config import load_config
from asvr.recipe.recipe import Recipe
from asvr.registry import DATASETS

MOST = 6
LOOKED_AT = 500  # the number of records in which examples are searched
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
QUESTION = "What is in this image?"  # for an image without a question

logger = logging.getLogger("asvr")


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image and a question. answer: the right one, None if it is not known."""

    image: Image.Image
    question: str
    answer: str | None = None


def read_examples(place: Path) -> list[Example]:
    """The first `MOST` examples of a folder of images, or of a JSON file: a list of records with ``image``, relative to
    the file, ``question`` and, if it is known, ``answer``. Raises ``ValueError``, naming the file and the record."""
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.suffix.lower() in SUFFIXES)
        if not files:
            raise ValueError(f"--examples {place}: the folder has no image ({', '.join(SUFFIXES)})")
        return [Example(image=read_upload(file), question=QUESTION) for file in files[:MOST]]
    try:
        records = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--examples {place}: expected a folder of images or a JSON file ({error})") from error
    if not isinstance(records, list) or not records:
        raise ValueError(f"--examples {place}: expected a list of records with 'image' and 'question'")
    return [_example(place, i, record) for i, record in enumerate(records[:MOST])]


def _example(file: Path, i: int, record: object) -> Example:
    known = isinstance(record, dict) and {"image", "question"} <= record.keys() <= {"image", "question", "answer"}
    if not known or not all(isinstance(value, str) for value in record.values()):
        raise ValueError(f"--examples {file}, record {i}: expected texts 'image', 'question' and, if known, 'answer'")
    try:
        image = read_upload(file.parent / record["image"])
    except Refused as error:
        raise ValueError(f"--examples {file}, record {i}: {error}") from error
    return Example(image=image, question=record["question"], answer=record.get("answer"))


def examples_of_run(work_dir: Path, stage: str | None) -> list[Example]:
    """Questions of the evaluation data in the run's config, of different kinds.

    A saved model names no data, so it has none. If the data cannot be read, the list is empty and the log says why.
    """
    if not (work_dir / "config.py").is_file():
        return []
    evaluation = Recipe(load_config(work_dir / "config.py")).stage(stage).evaluation
    if not evaluation:
        return []
    try:
        dataset = DATASETS.build(dict(evaluation.dataset))
        return _of_kinds(dataset)
    except (ValueError, OSError, NotImplementedError) as error:  # the last one: of a mixture, which finds no image
        logger.info("no examples from the run's evaluation data: %s", error)
        return []


def _of_kinds(dataset) -> list[Example]:
    """Take records of all kinds (``category``) in turn. Each has another image."""
    if not hasattr(dataset, "checked"):
        return []
    by_kind: dict[str, list[tuple]] = {}
    for i in range(0, len(dataset), max(1, len(dataset) // LOOKED_AT)):
        if (found := _read(dataset, i)) is not None:
            kind, *own = found
            by_kind.setdefault(kind, []).append(tuple(own))
    chosen: dict = {}
    answers: Counter[str] = Counter()
    for kind in itertools.islice(itertools.cycle(sorted(by_kind)), MOST * max(1, len(by_kind))):
        fresh = [own for own in by_kind[kind] if own[0] not in chosen]
        if fresh and len(chosen) < MOST:
            image, question, answer = min(fresh, key=lambda own: answers[own[2]])  # prefer new answers
            chosen[image] = question, answer
            answers[answer] += 1
    return [
        Example(image=read_upload(dataset.image(image)[1] if isinstance(image, str) else image), question=q, answer=a)
        for image, (q, a) in chosen.items()
    ]


def _read(dataset, i: int) -> tuple[str, Source, str, str] | None:
    """Category, image, first question and its answer of a record; None of one that has not one of each."""
    try:
        record, _ = dataset.checked(i)
        images = record.get("image")
        images = images if isinstance(images, list) else [] if images is None else [images]
        rounds = parse_rounds(record.get("conversations") or [], len(images))
    except Refused:  # the evaluation counts it
        return None
    if len(images) != 1:
        return None
    question = rounds[0].question.replace(IMAGE_MARK, "").strip()
    return str(record.get("category", "")), images[0], question, rounds[0].answer.strip()
