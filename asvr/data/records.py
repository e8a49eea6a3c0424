"""What every dataset of conversations has in common: records in, items for the collate function out.

A record is LLaVA's, ``{'image': name or list of names, 'conversations': [...]}``, or in a form that
`asvr.data.messages` reads, such as ``{'messages': [...], 'images': [...]}``. Images and conversation are both optional,
but one of them must be there.
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

LONGEST_NAME = 4095  # of a path, as Linux takes it
_told: set[tuple[str, str]] = set()  # (source, key) that this process, or the one that it is a fork of, has told of


@dataclass(frozen=True)
class RecordImage(StoredImage):
    """An image that a record holds itself, read again with the record where a list of images must not hold their bytes.
    number: among the images of the record. digest: SHA-256 of its bytes."""

    dataset: "ConversationDataset"
    record: int
    number: int
    digest: str

    def __str__(self) -> str:
        return f"{self.number} of {self.dataset.place(self.record)}"

    def read(self) -> bytes:
        image = _names(self.dataset.checked(self.record)[0])[self.number]
        assert not isinstance(image, str)  # the record holds it
        return image.read()

    def sha256(self) -> str:
        return self.digest


class ConversationDataset:
    """A map-style dataset of conversations about images. A subclass sets ``source``, how messages call
    it, and writes ``__len__``, ``record(i)`` and ``image(name)``.

    tokenizer, template, max_length, num_image_tokens: what an item needs (the trainer gives them); a dataset without
    them still has records, texts and images. max_length: positions, of which an image takes ``num_image_tokens``, a
    number or, where that depends on its size, an `ImageLayout`; None is no limit. on_error: ``raise``, or ``skip``: a
    `Refusal` stands in the place of the item, no other sample does, and the collate function leaves it out. ignore:
    keys of a record and of its messages that are left alone, which would be told or refused, see
    `asvr.data.record_keys`.

    refusals: reasons and how often, of what this process has refused (a worker's are in its batches).
    """

    source: str
    in_order: bool = False  # whether records are cheap in rising order alone, as those of a stream

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
            raise ValueError(f"{type(self).__name__}: ignore={ignore!r}: expected a list of keys")
        if both := [key for key in ignore if key in (*READ, *MESSAGE)]:
            raise ValueError(f"{type(self).__name__}: ignore names {both[0]!r}, which is read: take it out of the list")
        self.ignore = frozenset(ignore)
        self.refusals: Counter = Counter()

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must say how many records it has")

    def record(self, i: int) -> dict:
        """Record ``i``, in LLaVA's form or one that `asvr.data.messages` reads."""
        raise NotImplementedError(f"{type(self).__name__} must return a record")

    def image(self, name: str) -> tuple[str, Source]:
        """The cache key of an image of a record, and where it is."""
        raise NotImplementedError(f"{type(self).__name__} must find an image")

    def sample_id(self, i: int) -> str:
        return f"{self.source}:{i}"

    def place(self, i: int) -> str:
        """Where a record stands, for messages."""
        return f"{self.source}, record {i}"

    def __getitem__(self, i: int) -> dict | Refusal:
        """Return ``input_ids`` and ``labels`` (one ``IMAGE_TOKEN`` for an image), ``images`` (files or
        images, in the order of the marks), ``image_keys``, ``sample_id``, ``unread``: keys that nobody reads, and
        ``cut_to``: ``max_length`` where the row was longer.

        Raises: `Refused` where the policy is ``raise``.
        """
        return self._guarded(i, self._training_item)

    def question(self, i: int) -> dict | Refusal:
        """An item whose ``input_ids`` end where the record's last answer begins, for generation; with the
        texts ``question`` (without image marks) and ``answer`` (None where the record has none)."""
        return self._guarded(i, self._question_item)

    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) of the records: where it is equal, an index means the same sample."""
        digest = hashlib.sha256()
        for i in range(len(self)):
            try:
                digest.update(json.dumps(self.record(i), sort_keys=True, default=_digest).encode())
            except Refused as error:
                digest.update(str(error).encode())
        return digest.hexdigest()[:16]

    def texts(self, template=None) -> Iterator[str]:
        """Questions and answers, or the texts that ``template`` makes of them, to learn a tokenizer on."""
        template = None if template is None else build_template(template)
        for found in self._each(lambda i: _texts(self.checked(i)[0], template)):
            yield from found

    def images(self) -> Iterator[tuple[str, Source]]:
        """Every image once, with its key, in the order of the records. None is opened."""
        seen = set()
        for found in self._each(self._stored):
            for key, source in found:
                if key not in seen:
                    seen.add(key)
                    yield key, source

    def _stored(self, i: int) -> list[tuple[str, Source]]:
        """The images of a record, none of whose bytes are held."""
        found = [self._located(name) for name in _names(self.checked(i)[0])]
        return [
            (key, RecordImage(self, i, number, source.digest) if isinstance(source, InlineImage) else source)
            for number, (key, source) in enumerate(found)
        ]

    def _located(self, name: "str | InlineImage | Image.Image") -> tuple[str, Source]:
        """The cache key of an image of a record, and where it is or itself."""
        if isinstance(name, InlineImage):
            return f"inline {name.digest}", name
        if isinstance(name, Image.Image):
            return f"in memory {hashlib.sha256(image_bytes(name)).hexdigest()}", name
        return self.image(name)

    def some_images(self, limit: int) -> Sample:
        """At most ``limit`` images by their names in records that chance chooses, the same wherever they lie."""
        return sample_images(len(self), limit, self._images_of)

    def _images_of(self, i: int) -> Sample:
        try:
            record = self.record(i)
            names = _names(in_llava_form(record, self.ignore)) if isinstance(record, dict) else []
        except Refused:  # the record's fault, and the same at another place
            return []
        found: Sample = []
        for name in names:
            told = name if isinstance(name, str) else "in the record"
            try:
                found.append((told, self._located(name)[1]))
            except Refused as error:
                found.append((told, error))
        return found

    def checked(self, i: int) -> tuple[dict, list[str]]:
        """Record ``i`` in LLaVA's form, and its keys that are not read. Raises `Refused` where content would be lost
        with them."""
        record = self.record(i)
        if not isinstance(record, dict):
            raise Refused(f"the record is not an object: {short(record)}", "malformed")
        record = in_llava_form(record, self.ignore)
        unread = unread_keys(record, self.ignore)
        for key in unread:
            worker = get_worker_info()
            if (self.source, key) not in _told and (worker is None or worker.id == 0):
                _told.add((self.source, key))
                logger.info("%s: the key %s is not read (told once for %s)", self.place(i), short(key), self.source)
        return record, unread

    def _each(self, make) -> Iterator:
        """What ``make(i)`` returns, for every record that is not refused."""
        for i in range(len(self)):
            made = self._guarded(i, make)
            if not isinstance(made, Refusal):
                yield made

    def _guarded(self, i: int, make):
        """Return ``make(i)``, or treat its refusal by the policy."""
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
            raise ValueError(f"{type(self).__name__} needs tokenizer= and template= to make items of its records")
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
        if not isinstance(record.get("category", ""), str):  # answers are counted by it
            raise Refused(f"'category' is not a text: {short(record['category'])}", "malformed")
        visual = sum(tokens_of_images(self._image_tokens(item), len(item["images"])))
        self._refuse_longer(len(input_ids) - len(item["images"]) + visual)
        messages = _messages(record)
        asked = [m["value"].replace(IMAGE_MARK, "").strip() for m in messages if m["from"] == "human"]
        answered = bool(messages) and messages[-1]["from"] == "gpt"
        answer = messages[-1]["value"] if answered else None
        return dict(input_ids=input_ids, labels=labels, question=asked[-1] if asked else "", answer=answer, **item)

    def _image_tokens(self, item: dict) -> int | list[int]:
        """Of any image, or of each where that depends on its size: ``image_sizes`` of the item then."""
        if not isinstance(self.num_image_tokens, ImageLayout):
            return self.num_image_tokens or 1
        item["image_sizes"] = [image_size(source, max_pixels=LARGEST_LIMIT) for source in item["images"]]
        return [self.num_image_tokens(size).num_tokens for size in item["image_sizes"]]

    def _refuse_longer(self, used: int) -> None:
        """A question is never cut: what its answer begins behind would be lost."""
        if self.max_length is not None and used > self.max_length:
            raise Refused(f"the question takes {used} positions, more than max_length={self.max_length}", "too long")


def _digest(value) -> str:
    """What stands for an image that a record holds, in the record's fingerprint."""
    data = image_bytes(value) if isinstance(value, Image.Image) else value
    return hashlib.sha256(data if isinstance(data, bytes) else str(data).encode()).hexdigest()


def _names(record: dict) -> list[str | InlineImage | Image.Image]:
    """The images of a record in LLaVA's form."""
    names = record.get("image")
    names = [] if names is None else names if isinstance(names, list) else [names]
    if not all(isinstance(name, str | InlineImage | Image.Image) and name != "" for name in names):
        raise Refused(f"'image' is neither a file name nor a list of them: {short(names)}", "malformed")
    for name in names:
        if not isinstance(name, str):
            continue
        if "\0" in name or len(name) > LONGEST_NAME or not is_whole(name):
            refuse_elsewhere(name)
            expected = f"expected UTF-8 without NUL, at most {LONGEST_NAME} characters"
            raise Refused(f"{short(name)} is no name of an image's file: {expected}", "malformed")
    return names


def _messages(record: dict) -> list:
    """The conversation of a record; an absent one is empty."""
    messages = record.get("conversations")
    if messages is not None and not isinstance(messages, list):
        raise Refused(f"'conversations' is not a list: {short(messages)}", "malformed")
    return messages or []


def _texts(record: dict, template: Template | None) -> list[str]:
    names, messages = _names(record), _messages(record)
    if template is not None:
        return [s.text for s in segments_of(messages, len(names), template) if s.kind == "text"]
    if messages:
        parse_rounds(messages, len(names))
    return [message["value"].replace(IMAGE_MARK, "") for message in messages]
