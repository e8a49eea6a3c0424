"""Checks of datasets before a run. Worker processes turn every record into an item and open every image.

Legend: ``N`` visual tokens of an image.
"""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from asvr.base.log import progress_bar
from asvr.data.batch import IMAGE_TOKEN
from asvr.data.conversation import require_learned, truncate
from asvr.data.images import MAX_PIXELS, TURNS, image_size, opened, orientation, to_rgb
from asvr.data.layouts import ImageLayout, tokens_of_images
from asvr.data.refusals import Refusal, Refused

CHUNK = 64  # records that a process takes at a time
EXAMPLES = 3  # that are shown for each reason or note
SUFFIXES = dict(
    PNG=(".png", ".apng"),
    JPEG=(".jpg", ".jpeg", ".jfif"),
    WEBP=(".webp",),
    BMP=(".bmp",),
    GIF=(".gif",),
    TIFF=(".tif", ".tiff"),
    MPO=(".jpg", ".jpeg", ".mpo"),
)


@dataclass(kw_only=True)
class Source:
    """One use of a dataset in a config.

    name: for people, such as ``finetune: data.train``. dataset: built with ``on_error='skip'`` and without
    ``max_length``, so that full rows are seen before they are cut. asked: the questions are used, not the training
    rows. shifts: those of the model's targets, see `asvr.data.conversation.require_learned`.
    """

    name: str
    dataset: object
    max_length: int | None
    num_image_tokens: int | ImageLayout
    max_pixels: int = MAX_PIXELS
    asked: bool = False
    shifts: Collection[int] = (0,)


@dataclass
class Found:
    """The result of a scan. Two results add up.

    Its size does not grow with the data, except for ``bad``, which `add` does not take over.

    refused: the number of refused records, by reason. noted: the number of unusual but usable records, by kind. unread:
    the number of records with a key that nobody reads, by key. tokens: the number of rows by length with visual tokens,
    rounded down by `bin_of`. sides: the number of images by their longer side, rounded in the same way.
    """

    records: int = 0
    pictures: int = 0
    refused: Counter = field(default_factory=Counter)
    noted: Counter = field(default_factory=Counter)
    unread: Counter = field(default_factory=Counter)
    tokens: Counter = field(default_factory=Counter)
    sides: Counter = field(default_factory=Counter)
    bad: list = field(default_factory=list)

    def add(self, other: "Found") -> None:
        self.records += other.records
        self.pictures += other.pictures
        for name in ("refused", "noted", "unread", "tokens", "sides"):
            getattr(self, name).update(getattr(other, name))

    def note(self, kind: str, reason: str, sample_id: str, message: str) -> None:
        getattr(self, kind)[reason] += 1
        self.bad.append(dict(kind=kind, reason=reason, record=sample_id, message=message))


def bin_of(value: int) -> int:
    """Round down so that there are eight bins for each doubling: the four leading binary digits stay."""
    shift = max(0, value.bit_length() - 4)
    return value >> shift << shift


def scan(
    source: Source, *, report, workers: int, limit: int | None = None, decode: bool = True
) -> tuple[Found, dict[tuple[str, str], list[str]]]:
    """Scan a source: return all counts, and the first examples by (kind, reason).

    report: a stream that gets a JSON line for each refused or unusual record. workers: processes. limit: only the first
    records. decode: False reads only the headers of images. Raises ``ValueError`` if a process dies.
    """
    total = min(len(source.dataset), limit or len(source.dataset))
    whole, examples = Found(), {}
    with progress_bar(total=total, desc=source.name, unit="record") as bar:
        for found in _chunks(source, total, workers, decode):
            whole.add(found)
            for line in found.bad:
                shown = examples.setdefault((line["kind"], line["reason"]), [])
                if len(shown) < EXAMPLES:
                    shown.append(line["message"])
                report.write(json.dumps(dict(source=source.name, **line)) + "\n")
            bar.update(found.records)
    return whole, examples


def _chunks(source: Source, total: int, workers: int, decode: bool) -> Iterator[Found]:
    """Results in the order in which they finish. Only a few chunks run at a time, to limit memory."""
    ranges = ((begin, min(begin + CHUNK, total)) for begin in range(0, total, CHUNK))
    if not workers:
        yield from (_scan_range(source, *part, decode) for part in ranges)
        return
    with ProcessPoolExecutor(workers, get_context("fork"), initializer=_take, initargs=(source,)) as pool:
        waiting = {_submit(pool, part, decode): part for part in islice(ranges, 4 * workers)}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                begin, end = waiting.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool as error:
                    raise ValueError(
                        f"{source.name}: a process died near records {begin} to {end - 1}, likely because memory (RAM) "
                        "was full: give fewer --workers, or check these records with --workers 0"
                    ) from error
                waiting |= {_submit(pool, part, decode): part for part in islice(ranges, 1)}


_SOURCE: Source | None = None  # of this process; a fork inherits it


def _take(source: Source) -> None:
    global _SOURCE
    _SOURCE = source


def _submit(pool: Executor, part: tuple[int, int], decode: bool):
    return pool.submit(_scan_own, *part, decode)


def _scan_own(begin: int, end: int, decode: bool) -> Found:
    return _scan_range(_SOURCE, begin, end, decode)


def _scan_range(source: Source, begin: int, end: int, decode: bool) -> Found:
    found = Found()
    for i in range(begin, end):
        found.records += 1
        try:
            item = source.dataset.question(i) if source.asked else source.dataset[i]
            if isinstance(item, Refusal):
                found.note("refused", item.reason, item.sample_id, item.message)
            else:
                _look_at(source, item, found, decode)
        except Refused as error:
            sample = source.dataset.sample_id(i) if hasattr(source.dataset, "sample_id") else f"{source.name}:{i}"
            found.note("refused", error.reason, sample, f"{sample}: {error}")
    return found


def _look_at(source: Source, item: dict, found: Found, decode: bool) -> None:
    ids, sample = item["input_ids"], item["sample_id"]
    sizes = _sizes(source, item)
    used = len(ids) - len(sizes) + sum(sizes)
    found.tokens[bin_of(used)] += 1
    found.unread.update(item.get("unread", ()))
    if source.asked and source.max_length is not None and used > source.max_length:
        raise Refused(
            f"the question takes {used} positions, more than max_length={source.max_length}: raise it", "too long"
        )
    if not source.asked:
        row = truncate(ids, item["labels"], max_length=source.max_length, num_image_tokens=sizes)
        cut_to = source.max_length if len(row[0]) < len(ids) else None
        require_learned(*row, shifts=source.shifts, cut_to=cut_to, num_image_tokens=sizes)
    if source.max_length is not None and used > source.max_length:
        found.note("noted", "cut by max_length", sample, f"{sample}: {used} positions, {source.max_length} are kept")
    for image in item["images"]:
        found.pictures += 1
        size = _look_at_image(image, sample, source.max_pixels, found, decode)
        found.sides[bin_of(max(size))] += 1


def _sizes(source: Source, item: dict) -> list[int]:
    """The positions that each image takes."""
    tokens = source.num_image_tokens
    if isinstance(tokens, int):
        return tokens_of_images(tokens, item["input_ids"].count(IMAGE_TOKEN))
    sizes = item.get("image_sizes") or [image_size(one, max_pixels=source.max_pixels) for one in item["images"]]
    return [tokens(size).num_tokens for size in sizes]


def _look_at_image(source, sample: str, max_pixels: int, found: Found, decode: bool) -> tuple[int, int]:
    """Check an image and return its width and height. Raises `Refused` as training would."""
    with opened(source, max_pixels=max_pixels) as image:
        if decode:
            to_rgb(image)
        size, kind, turned = image.size, image.format, orientation(image) in TURNS
    if isinstance(source, str | Path) and Path(source).suffix.lower() not in SUFFIXES[kind]:
        found.note("noted", "wrong extension", sample, f"{sample}: {source} is {kind}")
    if turned:
        found.note("noted", "EXIF-rotated, used as stored", sample, f"{sample}: {source}")
    return size


def default_workers() -> int:
    return len(os.sched_getaffinity(0))
