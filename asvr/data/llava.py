"""LLaVA's annotation files: JSON lists and JSON lines of any size. Only the places of records are held in memory."""

import codecs
import json
import os
from pathlib import Path

import numpy as np

from asvr.data.file_index import FileReader, file_index
from asvr.data.image_sources import refuse_elsewhere
from asvr.data.records import ConversationDataset
from asvr.data.refusals import Refused
from asvr.data.strict_json import MAX_BYTES_WITH_IMAGES, MAX_RECORD_BYTES, parse_record, require_size
from asvr.registry import DATASETS

BLOCK = 1 << 22  # bytes read at a time
KIND = "records of a LLaVA file, 1"
WHITESPACE = np.isin(np.arange(256), list(b" \t\r\n"))  # by byte


@DATASETS.register_module()
class LlavaDataset(ConversationDataset):
    """The records of a LLaVA annotation file: a JSON list or JSON lines.

    Records are read one at a time. The place of each record is kept in an index, see `asvr.data.file_index`.

    ann_file: the file. Its first character decides between a JSON list and JSON lines. image_folder: the folder of the
    images; by default the folder of the file. Names that lead out of it are refused.

    For the other arguments see `asvr.data.records.ConversationDataset`.

    Raises: ValueError if the file is missing or has no records.
    """

    def __init__(self, *, ann_file: str, image_folder: str = "", **kwargs):
        super().__init__(**kwargs)
        self.source = str(ann_file)
        if not os.path.isfile(ann_file):
            raise ValueError(f"ann_file {ann_file!r} is missing: expected a JSON list or JSON lines")
        self.image_folder = os.path.abspath(image_folder or os.path.dirname(ann_file))
        index = file_index(self.source, KIND, lambda path: dict(spans=index_records(path)))
        self.spans, self.sha256, self.read = index.arrays["spans"], index.sha256, FileReader(self.source)
        if not len(self.spans):
            raise ValueError(f"ann_file {ann_file!r} has no records: expected at least one")

    def __len__(self) -> int:
        return len(self.spans)

    def record(self, i: int) -> dict:
        start, end = self.spans[i]
        require_size(end - start)
        return parse_record(self.read(start, end))

    def fingerprint(self) -> str:
        return self.sha256[:16]

    def image(self, name: str) -> tuple[str, Path]:
        return image_inside(self.image_folder, name)


def image_inside(image_folder: str, name: str) -> tuple[str, Path]:
    """The cache key and the file of an image. Raises `Refused` if the name leads out of the folder, or is a URL or the
    image itself."""
    refuse_elsewhere(name)
    path = os.path.normpath(os.path.join(image_folder, name))
    if os.path.commonpath([image_folder, path]) != image_folder:
        raise Refused(f"the image {name!r} lies outside image_folder {image_folder}", "outside image_folder")
    return path, Path(path)


def index_records(path: str) -> np.ndarray:
    """The first and the last byte (exclusive) of each record: int64 (records, 2).

    Raises: ValueError if the file is neither a JSON list nor JSON lines.
    """
    with open(path, "rb") as file:
        head = file.read(4)
        if b"\0" in head:
            raise ValueError(f"ann_file {path!r} begins with {head!r}, as UTF-16 does: save it as UTF-8")
        file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
        first = file.read(1)
        while first.isspace():
            first = file.read(1)
        start = file.tell()
        if first == b"[":
            return _index_list(file, start, path)
        if first in (b"{", b""):
            _refuse_one_object(file, start - len(first), path)
            return _index_lines(file)
    raise ValueError(
        f"ann_file {path!r} begins with {first!r}: expected '[' (a JSON list) or '{{' (JSON lines), in UTF-8"
    )


def _refuse_one_object(file, begin: int, path: str) -> None:
    """Raise ``ValueError`` if the first object takes several lines: each line would be a bad record."""
    file.seek(begin)
    head = file.read(MAX_RECORD_BYTES).decode(errors="replace")
    first = head.partition("\n")[0]
    try:
        _, end = json.JSONDecoder().raw_decode(head)
    except (ValueError, RecursionError):
        end = 0
    if end > len(first) or first.strip() == "{":
        raise ValueError(
            f"ann_file {path!r} holds one JSON object over several lines: expected a list of records, [...], or one "
            "record a line"
        )


def _index_lines(file) -> np.ndarray:
    """The places of all lines that are not blank, line breaks included."""
    file.seek(0)
    starts, indented, offset, at_start = [], [], 0, True
    while block := file.read(BLOCK):
        data = np.frombuffer(block, np.uint8)
        begin = np.concatenate([[0] if at_start else [], np.flatnonzero(data == ord("\n")) + 1]).astype(np.int64)
        at_start = block.endswith(b"\n")
        begin = begin[begin < len(data)]
        starts.append(begin + offset)
        indented.append(WHITESPACE[data[begin]])
        offset += len(block)
    if not starts:
        return np.empty((0, 2), np.int64)
    begins = np.concatenate(starts)
    spans = np.stack([begins, np.append(begins[1:], offset)], axis=1)
    suspects = np.flatnonzero(np.concatenate(indented))
    return np.delete(spans, [i for i in suspects if not _read(file, *spans[i]).strip()], axis=0)


def _read(file, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _index_list(file, offset: int, path: str) -> np.ndarray:
    """Parse the list element by element and note the place of each. ``offset``: the byte after '['."""
    parse, decode = json.JSONDecoder().raw_decode, codecs.getincrementaldecoder("utf-8")().decode
    file.seek(offset)
    text, spans, want = "", [], BLOCK
    while True:
        block = file.read(want)
        try:
            text += decode(block, not block)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, record {len(spans)} or later: not UTF-8: {error}") from error
        at = 0
        while True:
            begin = _skip(text, at, " \t\r\n,")
            if text[begin : begin + 1] == "]":
                if rest := text[begin + 1 :].encode().strip() or file.read(BLOCK).strip():
                    raise ValueError(f"{path}: found {rest[:40]!r} after the end of the JSON list: expected nothing")
                return np.array(spans, dtype=np.int64).reshape(-1, 2)
            try:
                _, end = parse(text, begin)
            except (ValueError, RecursionError) as error:
                if not block or len(text) - begin > MAX_BYTES_WITH_IMAGES:
                    raise ValueError(
                        f"{path}, record {len(spans)}: the JSON list is damaged near byte {offset}: {error}; in a "
                        "file of JSON lines, bad records can be skipped"
                    ) from error
                break
            if end == len(text) and block:  # a number may go on in the next block
                break
            start = offset + len(text[at:begin].encode())
            offset = start + len(text[begin:end].encode())
            spans.append((start, offset))
            at = end
        text = text[at:]
        want = max(BLOCK, len(text))  # for a record larger than a block: doubling keeps the work linear


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at
