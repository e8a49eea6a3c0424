"""Tar shards as webdataset writes them, with access in any order."""

import re
import tarfile
from array import array
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from os.path import basename

import numpy as np

from asvr.base.text import short
from asvr.data.file_index import FileIndex
from asvr.data.image_sources import StoredImage
from asvr.data.messages import in_llava_form
from asvr.data.record_keys import DESCRIBES, unknown_key
from asvr.data.refusals import Refused
from asvr.data.shards import ShardedDataset
from asvr.data.strict_json import parse_record
from asvr.data.templates import IMAGE_MARK
from asvr.registry import DATASETS

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}
NAME = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]*)$")  # the key of a sample, and the field: all after the first dot
LABELS = ("cls", "__key__", "__url__", *DESCRIBES)  # fields that describe a sample; cls is the number of a class
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")


@dataclass(frozen=True, slots=True)
class TarImage(StoredImage):
    """An image in a shard. shard: SHA-256 of the whole file."""

    path: str
    name: str
    start: int
    end: int
    shard: str

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"

    def read(self) -> bytes:
        return _read(self.path, self.start, self.end)

    def sha256(self) -> str:
        return sha256(f"{self.shard} {self.start} {self.end}".encode()).hexdigest()


@DATASETS.register_module()
class TarDataset(ShardedDataset):
    """The samples of webdataset shards (tar files).

    A sample consists of neighbouring members whose names agree up to the first dot (``0001.jpg``, ``0001.json``).

    The member ``json`` is the record, in LLaVA's form or with messages. If it has no conversation, ``txt`` is the
    caption: the answer to a question that has only the images. Members with the suffix of an image (``jpg``,
    ``1.png``) are the images. They come in the order in which the record names them, or else in the order of the
    shard. A sample with any other member is refused, since its content would be lost; add its field (``mp4``) to
    ``ignore`` to accept it. Members that describe a sample, such as ``cls``, are ignored. See `ShardedDataset` for
    ``files`` and errors.

    Raises: ValueError if a shard is compressed, cut off or not a tar file.
    """

    kind = "members of a tar shard, 1"

    @staticmethod
    def scan(path: str) -> dict[str, np.ndarray]:
        return scan_tar(path)

    @staticmethod
    def count(index: FileIndex) -> int:
        return len(index.arrays["samples"]) - 1

    def record(self, i: int) -> dict:
        shard, own = self.find(i)
        first, end = self.shards[shard].arrays["samples"][own : own + 2].tolist()
        fields, images = {}, {}
        for member in range(first, end):
            name = self._name(shard, member)
            field = _split(name)[1]
            if field in self.ignore or field.split(".")[0] in LABELS:
                continue
            if field.rsplit(".")[-1] in IMAGE_SUFFIXES:
                images[f"{shard}:{member}:{name}"] = name
            elif field in ("json", "txt") and field not in fields:
                fields[field] = _read(self.paths[shard], *self._span(shard, member))
            else:
                raise _unread(field, name, twice=field in fields)
        record = _record(fields, images, self.ignore)
        return record | dict(image=list(images)) if images else record

    def image(self, name: str) -> tuple[str, TarImage]:
        shard, member, own = name.split(":", 2)
        shard = int(shard)
        start, end = self._span(shard, int(member))
        image = TarImage(self.paths[shard], own, start, end, self.shards[shard].sha256)
        return f"{image}:{start}", image

    def place(self, i: int) -> str:
        shard, own = self.find(i)
        first = int(self.shards[shard].arrays["samples"][own])
        return f"{super().place(i)} ({_split(self._name(shard, first))[0]})"

    def _span(self, shard: int, member: int) -> tuple[int, int]:
        start, end = self.shards[shard].arrays["spans"][member].tolist()
        return start, end

    def _name(self, shard: int, member: int) -> str:
        arrays = self.shards[shard].arrays
        start = arrays["name_ends"][member - 1] if member else 0
        return arrays["names"][start : arrays["name_ends"][member]].tobytes().decode(errors="surrogateescape")


def _unread(field: str, name: str, twice: bool) -> Refused:
    if twice:
        return Refused(f"the sample has two members of the field {field!r}, the second is {short(name)}", "malformed")
    return unknown_key(field, None, "member")


def _record(fields: dict[str, bytes], images: dict[str, str], ignore: Collection[str]) -> dict:
    """The record of a sample. images: our name -> the name of the member; it gets the order of the record."""
    record = parse_record(fields.get("json", b"{}"))
    try:
        text = fields.get("txt", b"").decode()
    except UnicodeDecodeError as error:
        raise Refused(f"the txt of the sample is not UTF-8: {error}", "malformed") from error
    if not isinstance(record, dict):
        raise Refused(f"the json of the sample is not a JSON object: {short(record)}", "malformed")
    record = in_llava_form(record, ignore)
    named = record.pop("image", None)
    named = named if isinstance(named, list) else [] if named is None else [named]
    if any(not isinstance(name, str) for name in named):  # the json itself holds them
        if images:
            raise Refused("its json holds images, and so does the shard: expected one of them", "malformed")
        record["image"] = named
        named = []
    if named and len(named) != len(images):
        raise Refused(f"its json names {len(named)} images, the shard has {len(images)}", "missing image")
    _put_in_order(images, named)
    if "txt" not in fields:
        return record
    if "conversations" in record:  # it is the same text, or the check of keys refuses the record
        return dict(record, txt=text)
    question = "\n".join([IMAGE_MARK] * len(images))
    record["conversations"] = [{"from": "human", "value": question}, {"from": "gpt", "value": text}]
    return record


def _put_in_order(images: dict[str, str], named: list) -> None:
    """Sort by the names in the record, if they are the names of the members."""
    own = {basename(name): key for key, name in images.items()}
    keys = [own.get(basename(name)) if isinstance(name, str) else None for name in named]
    if len(own) == len(images) and sorted(map(str, keys)) == sorted(images):
        for key in keys:
            images[key] = images.pop(key)


def scan_tar(path: str) -> dict[str, np.ndarray]:
    """The index of a shard.

    It has ``samples`` (R + 1), the first member of each sample; ``spans`` (M, 2), the first and last byte (exclusive)
    of each member; ``names``, all names joined in UTF-8, and ``name_ends`` (M), where each ends.

    Raises: ValueError if the file is compressed, cut off or not a tar file.
    """
    with open(path, "rb") as file:
        head = file.read(6)
    for magic, name in COMPRESSED.items():
        if head.startswith(magic):
            raise ValueError(
                f"{path} is compressed ({name}): samples are read in any order, so unpack it to a plain .tar"
            )
    samples, spans, names, name_ends, last = array("q"), array("q"), bytearray(), array("q"), None
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # otherwise tarfile keeps all of them in memory
                if not member.isreg() or _split(member.name) is None:
                    continue
                key = _split(member.name)[0]
                if key != last:
                    samples.append(len(name_ends))
                    last = key
                spans.extend((member.offset_data, member.offset_data + member.size))
                names += member.name.encode(errors="surrogateescape")
                name_ends.append(len(names))
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile stops without an error
                raise tarfile.ReadError(f"cut off or damaged at byte {tar.offset}")
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a tar file: {error}") from error
    samples.append(len(name_ends))
    return dict(
        samples=np.array(samples, np.int64),
        spans=np.array(spans, np.int64).reshape(-1, 2),
        names=np.frombuffer(bytes(names), np.uint8),
        name_ends=np.array(name_ends, np.int64),
    )


def _split(name: str) -> tuple[str, str] | None:
    """Key and field of a member; None if it belongs to no sample."""
    match = NAME.match(name)
    return None if match is None or match[1].startswith("__") else (match[1], match[2].lower())


def _read(path: str, start: int, end: int) -> bytes:
    """Read a part of a file. Each read opens it: samples in random order from many shards rarely reuse an open file."""
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        return file.read(end - start)
