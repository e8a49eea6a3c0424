"""The base class of all datasets of conversations: it turns records into items for the collate function.

A record has LLaVA's form, ``{'image': name or list of names, 'conversations': [...]}``, or a form that
`asvr.data.messages` reads, such as ``{'messages': [...], 'images': [...]}``. A record has images, a conversation or
both.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image
from torch.utils.data import get_worker_info

from asvr.base.log import logger
from asvr.base.text import short
from asvr.data.conversation import encode_segments, is_whole, parse_rounds, segments_of, truncate
from asvr.data.image_digest import Sample, sample_images
from asvr.data.image_sources import InlineImage, Source, StoredImage, has_file, refuse_elsewhere
from asvr.data.images import LARGEST_LIMIT, check_file, image_bytes, image_size
from asvr.data.layouts import ImageLayout, tokens_of_images
from asvr.data.messages import in_llava_form
from asvr.data.record_keys import MESSAGE, READ, unread_keys
from asvr.data.refusals import Refusal, Refused, check_policy
from asvr.data.templates import IMAGE_MARK, Template, build_template

LONGEST_NAME = 4095  # characters: Linux takes no longer path
_logged: set[tuple[str, str]] = set()  # (source, key) that this process or its parent has logged


@dataclass(frozen=True)
class RecordImage(StoredImage):
    """An image that stands in a record. It is read again with the record, so that lists of images do not hold bytes.

    number: which of the record's images it is. digest: SHA-256 of its bytes."""

    dataset: "ConversationDataset"
    record: int
    number: int
    digest: str

    def __str__(self) -> str:
        return f"{self.number} of {self.dataset.place(self.record)}"

    def read(self) -> bytes:
        image = _names(self.dataset.checked(self.record)[0])[self.number]
        assert not isinstance(image, str)  # it stands in the record
        return image.read()

    def sha256(self) -> str:
        return self.digest


class ConversationDataset:
    """A map-style dataset of conversations about images.

    A subclass sets ``source``, its name in messages, and writes ``__len__``, ``record(i)`` and ``image(name)``.

    tokenizer, template, max_length, num_image_tokens: needed to make items; the trainer gives them. A dataset without
    them still has records, texts and images. max_length: the most positions of a row; None: no limit. An image takes
    ``num_image_tokens`` of them: a number, or an `ImageLayout` if it depends on the size of the image. on_error:
    ``raise``; or ``skip``, which returns a `Refusal` in place of the item, and the collate function leaves it out.
    ignore: keys of a record and of its messages to ignore. Otherwise they would be logged or refused, see
    `asvr.data.record_keys`.

    refusals: how often this process refused a record, by reason. The refusals of a worker are in its batches.
    """

    source: str
    in_order: bool = False  # whether records are only cheap in rising order, as in a stream

    def __init__(
        self, *, tokenizer=None, template=None, max_length=None, num_image_tokens=None, on_error="raise", ignore=()
    ):
        if hasattr(type(self), "picture"):  # else a base's image() would be called in its place
            raise ValueError(f"{type(self).__name__}: its method picture(name) is now called image(name): rename it")
        if max_length is not None and num_image_tokens is None:
            raise ValueError("max_length needs num_image_tokens: the positions that an image takes")
        self.tokenizer = tokenizer
        self.template = None if template is None else build_template(template, tokenizer)
        self.max_length = max_length
        self.num_image_tokens = num_image_tokens
        self.on_error = check_policy(on_error)
        if isinstance(ignore, str) or not all(isinstance(key, str) for key in ignore):
            raise ValueError(f"{type(self).__name__}: ignore={ignore!r}: expected a list of keys, such as ['caption']")
        if both := [key for key in ignore if key in (*READ, *MESSAGE)]:
            raise ValueError(f"{type(self).__name__}: ignore names {both[0]!r}, which is read: take it out of the list")
        self.ignore = frozenset(ignore)
        self.refusals: Counter = Counter()

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must have __len__: the number of its records")

    def record(self, i: int) -> dict:
        """Record ``i``, in LLaVA's form or one that `asvr.data.messages` reads."""
        raise NotImplementedError(f"{type(self).__name__} must have record(i)")

    def image(self, name: str) -> tuple[str, Source]:
        """The cache key and the source of an image of a record."""
        old = " (it was called picture)" if hasattr(self, "picture") else ""
        raise NotImplementedError(f"{type(self).__name__} must have image(name){old}")

    def sample_id(self, i: int) -> str:
        return f"{self.source}:{i}"

    def place(self, i: int) -> str:
        """The place of a record, for messages."""
        return f"{self.source}, record {i}"

    def __getitem__(self, i: int) -> dict | Refusal:
        """The training item of record ``i``.

        It has ``input_ids`` and ``labels`` (one ``IMAGE_TOKEN`` for each image), ``images`` (their sources, in the
        order of the marks), ``image_keys``, ``sample_id``, ``unread`` (keys that nobody reads) and ``cut_to``
        (``max_length`` if the row was longer, else None).

        Raises: `Refused` if the record cannot be used and the policy is ``raise``.
        """
        return self._guarded(i, self._training_item)

    def question(self, i: int) -> dict | Refusal:
        """An item for generation: its ``input_ids`` end where the last answer of the record begins.

        It also has the texts ``question`` (without image marks) and ``answer`` (None if the record has none)."""
        return self._guarded(i, self._question_item)

    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) of the records. If it is equal, an index means the same sample."""
        digest = hashlib.sha256()
        for i in range(len(self)):
            try:
                digest.update(json.dumps(self.record(i), sort_keys=True, default=_digest).encode())
            except Refused as error:
                digest.update(str(error).encode())
        return digest.hexdigest()[:16]

    def texts(self, template=None) -> Iterator[str]:
        """Questions and answers, or the texts that ``template`` makes of them. A text tokenizer learns from them."""
        template = None if template is None else build_template(template)
        for found in self._each(lambda i: _texts(self.checked(i)[0], template)):
            yield from found

    def images(self) -> Iterator[tuple[str, Source]]:
        """Every image once, as key and source, in the order of the records. No image is opened."""
        seen = set()
        for found in self._each(self.stored_images):
            for key, source in found:
                if key not in seen:
                    seen.add(key)
                    yield key, source

    def stored_images(self, i: int) -> list[tuple[str, Source]]:
        """The images of a record, without their bytes."""
        found = [self._located(name) for name in _names(self.checked(i)[0])]
        return [
            (key, RecordImage(self, i, number, source.digest) if isinstance(source, InlineImage) else source)
            for number, (key, source) in enumerate(found)
        ]

    def _located(self, name: "str | InlineImage | Image.Image") -> tuple[str, Source]:
        """The cache key of an image of a record, and its source or the image itself."""
        if isinstance(name, InlineImage):
            return f"inline {name.digest}", name
        if isinstance(name, Image.Image):
            return f"in memory {hashlib.sha256(image_bytes(name)).hexdigest()}", name
        return self.image(name)

    def some_images(self, limit: int) -> Sample:
        """At most ``limit`` images of random records, by name. They are the same wherever the files are."""
        return sample_images(len(self), limit, self._images_of)

    def _images_of(self, i: int) -> Sample:
        try:
            record = self.record(i)
            names = _names(in_llava_form(record, self.ignore)) if isinstance(record, dict) else []
        except Refused:  # the record is bad, wherever its files are
            return []
        found: Sample = []
        for name in names:
            shown = name if isinstance(name, str) else "in the record"
            try:
                found.append((shown, self._located(name)[1]))
            except Refused as error:
                found.append((shown, error))
        return found

    def checked(self, i: int) -> tuple[dict, list[str]]:
        """Record ``i`` in LLaVA's form, and its keys that are not read. Raises `Refused` if one of these keys has
        content, which would be lost."""
        record = self.record(i)
        if not isinstance(record, dict):
            raise Refused(f"the record is not a JSON object: {short(record)}", "malformed")
        record = in_llava_form(record, self.ignore)
        unread = unread_keys(record, self.ignore)
        for key in unread:
            worker = get_worker_info()
            if (self.source, key) not in _logged and (worker is None or worker.id == 0):
                _logged.add((self.source, key))
                logger.info("%s: the key %s is not read (logged once for %s)", self.place(i), short(key), self.source)
        return record, unread

    def _each(self, make) -> Iterator:
        """Yield ``make(i)`` for every record that is not refused."""
        for i in range(len(self)):
            made = self._guarded(i, make)
            if not isinstance(made, Refusal):
                yield made

    def _guarded(self, i: int, make):
        """Return ``make(i)``. A refusal is raised or returned, as the policy says."""
        try:
            return make(i)
        except Refused as error:
            self.refusals[error.reason] += 1
            message = f"{self.place(i)}: {error}"
            if self.on_error == "raise":
                raise Refused(message, error.reason) from error
            return Refusal(self.sample_id(i), error.reason, message)

    def _segments(self, i: int, prompt: bool = False) -> tuple[dict, list, dict]:
        if self.tokenizer is None or self.template is None:
            raise ValueError(f"{type(self).__name__} needs tokenizer= and template= to turn its records into items")
        record, unread = self.checked(i)
        names = _names(record)
        segments = segments_of(_messages(record), len(names), self.template, prompt=prompt)
        keys, sources = [], []
        for name in names:
            key, source = self._located(name)
            if has_file(source):
                check_file(source)
            keys.append(key)
            sources.append(source)
        return record, segments, dict(images=sources, image_keys=keys, sample_id=self.sample_id(i), unread=unread)

    def _training_item(self, i: int) -> dict:
        _, segments, item = self._segments(i)
        row = encode_segments(segments, self.tokenizer)
        input_ids, labels = truncate(*row, max_length=self.max_length, num_image_tokens=self._image_tokens(item))
        cut_to = self.max_length if len(input_ids) < len(row[0]) else None
        return dict(input_ids=input_ids, labels=labels, cut_to=cut_to, **item)

    def _question_item(self, i: int) -> dict:
        record, segments, item = self._segments(i, prompt=True)
        input_ids, labels = encode_segments(segments, self.tokenizer)
        if not isinstance(record.get("category", ""), str):  # metrics count answers by it
            raise Refused(f"'category' is {short(record['category'])}: expected a text", "malformed")
        visual = sum(tokens_of_images(self._image_tokens(item), len(item["images"])))
        self._refuse_longer(len(input_ids) - len(item["images"]) + visual)
        messages = _messages(record)
        asked = [m["value"].replace(IMAGE_MARK, "").strip() for m in messages if m["from"] == "human"]
        answered = bool(messages) and messages[-1]["from"] == "gpt"
        answer = messages[-1]["value"] if answered else None
        return dict(input_ids=input_ids, labels=labels, question=asked[-1] if asked else "", answer=answer, **item)

    def _image_tokens(self, item: dict) -> int | list[int]:
        """The tokens of any image, or of each if its size decides. Then the item gets ``image_sizes``."""
        if not isinstance(self.num_image_tokens, ImageLayout):
            return self.num_image_tokens or 1
        item["image_sizes"] = [image_size(source, max_pixels=LARGEST_LIMIT) for source in item["images"]]
        return [self.num_image_tokens(size).num_tokens for size in item["image_sizes"]]

    def _refuse_longer(self, used: int) -> None:
        """Refuse a question that is too long. It is never cut, since its end would be lost."""
        if self.max_length is not None and used > self.max_length:
            raise Refused(
                f"the question takes {used} positions, more than max_length={self.max_length}: raise it", "too long"
            )


def _digest(value) -> str:
    """A digest of an image that stands in a record, for the fingerprint of the record."""
    data = image_bytes(value) if isinstance(value, Image.Image) else value
    return hashlib.sha256(data if isinstance(data, bytes) else str(data).encode()).hexdigest()


def _names(record: dict) -> list[str | InlineImage | Image.Image]:
    """The images of a record in LLaVA's form."""
    names = record.get("image")
    names = [] if names is None else names if isinstance(names, list) else [names]
    if not all(isinstance(name, str | InlineImage | Image.Image) and name != "" for name in names):
        raise Refused(f"'image' is {short(names)}: expected a file name or a list of them", "malformed")
    for name in names:
        if not isinstance(name, str):
            continue
        if "\0" in name or len(name) > LONGEST_NAME or not is_whole(name):
            refuse_elsewhere(name)
            expected = f"expected UTF-8 without NUL, at most {LONGEST_NAME} characters"
            raise Refused(f"{short(name)} is not a file name: {expected}", "malformed")
    return names


def _messages(record: dict) -> list:
    """The conversation of a record; empty if it has none."""
    messages = record.get("conversations")
    if messages is not None and not isinstance(messages, list):
        raise Refused(f"'conversations' is {short(messages)}: expected a list of messages", "malformed")
    return messages or []


def _texts(record: dict, template: Template | None) -> list[str]:
    names, messages = _names(record), _messages(record)
    if template is not None:
        return [s.text for s in segments_of(messages, len(names), template) if s.kind == "text"]
    if messages:
        parse_rounds(messages, len(names))
    return [message["value"].replace(IMAGE_MARK, "") for message in messages]
