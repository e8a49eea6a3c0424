"""Parquet files, through Hugging Face `datasets`."""

import logging
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from asvr.base.log_once import log_once
from asvr.data.conversation import ROLES as SPEAKERS
from asvr.data.file_index import FileIndex
from asvr.data.image_sources import StoredPicture
from asvr.data.llava import picture_inside
from asvr.data.record_keys import DESCRIBES, WEIGHTS, is_content, meant_by, unknown_key
from asvr.data.refusals import Refused
from asvr.data.shards import ShardedDataset
from asvr.data.strict_json import parse_record
from asvr.registry import DATASETS

ROLES = ("image", "conversations", "question", "answer", "category")


@dataclass(frozen=True, slots=True)
class ParquetPicture(StoredPicture):
    """One of the pictures of a row."""

    dataset: "ParquetDataset"
    row: int
    number: int

    def __str__(self) -> str:
        return f"{self.number} of {self.dataset.place(self.row)}"

    def read(self) -> bytes:
        return self.dataset.held(self.row, self.number).as_py()

    def sha256(self) -> str:
        shard, own = self.dataset.find(self.row)
        column = self.dataset.columns["image"]
        return sha256(f"{self.dataset.shards[shard].sha256} {column} {own} {self.number}".encode()).hexdigest()


@DATASETS.register_module()
class ParquetDataset(ShardedDataset):
    """Rows of Parquet files, read with Hugging Face `datasets`.

    `datasets` copies the columns that are used to its cache of Arrow files once (``$HF_DATASETS_CACHE``), and maps that
    into memory.

    columns: which column has what: ``image`` (a picture's bytes, the struct of bytes and path that `datasets` writes, a
    path, or a list of one of them), ``conversations`` (LLaVA's messages, or them as JSON) or, in their place,
    ``question`` and ``answer``, and ``category``. By default each is looked for under its own name; None: it is not
    read. image_folder: where paths lead; by default the first file's folder. See `ShardedDataset` for ``files`` and
    errors.

    Raises: ValueError where `datasets` is not installed, a file is no Parquet file, a column is not there, or one that
    is not read seems to hold what would be lost, and does not stand in ``ignore``.
    """

    kind = "rows of a Parquet file, 1"

    @staticmethod
    def scan(path: str) -> dict[str, np.ndarray]:
        return dict(rows=np.array([_metadata(path).num_rows], np.int64))

    @staticmethod
    def count(index: FileIndex) -> int:
        return int(index.arrays["rows"][0])

    def __init__(self, *, files: str | list, columns: dict | None = None, image_folder: str = "", **kwargs):
        datasets = _datasets()
        super().__init__(files=files, **kwargs)
        self.columns = _columns(self.paths[0], columns)
        if both := {name: role for role, name in self.columns.items() if name in self.ignore}:
            name, role = next(iter(both.items()))
            fix = f"columns=dict({role}=None) leaves it out"
            raise ValueError(f"{self.source}: ignore names the column {name!r}, which is read: {fix}")
        self.image_folder = os.path.abspath(image_folder or os.path.dirname(self.paths[0]))
        try:
            rows = datasets.Dataset.from_parquet(self.paths, columns=sorted(set(self.columns.values())))
        except datasets.exceptions.DatasetGenerationError as error:
            raise ValueError(f"{self.source}: cannot be read as one table: {error.__cause__ or error}") from error
        assert len(rows) == len(self), f"{self.source}: {len(rows)} rows, {len(self)} by the files' own count"
        self.rows = rows.with_format("arrow")
        self.many, self.holds = _picture_type(self.rows[0], self.columns.get("image"))
        self._check_unread(_metadata(self.paths[0]).schema.to_arrow_schema())

    def _check_unread(self, schema) -> None:
        """Tell of the columns that are not read; raise ``ValueError`` where content would be lost with one."""
        lacks_text = not self.columns.keys() & {"conversations", "question"}
        filled = [*([] if lacks_text else ["conversations"]), *(["image"] if "image" in self.columns else [])]
        unread = [field for field in schema if field.name not in {*self.columns.values(), *self.ignore}]
        for field in unread:
            name, meant = field.name.lower(), meant_by(field.name, filled)
            describes = name in DESCRIBES or name.endswith("_id")
            content = is_content(name, meant) and meant not in filled and _holds_any(field.type)
            lost = not describes and (content or name in WEIGHTS or (lacks_text and _holds(field.type, text=True)))
            if lost or ("image" not in self.columns and _holds(field.type, text=False)):
                raise ValueError(f"{self.source}: {unknown_key(field.name, meant, 'column')}, or name it in `columns`")
        if told := [field.name for field in unread if field.name.lower() not in DESCRIBES]:
            log_once(logging.INFO, "%s: columns that are not read: %s", self.source, ", ".join(told))

    def record(self, i: int) -> dict:
        row = self.rows[i]
        found = {role: row.column(name)[0].as_py() for role, name in self.columns.items() if role != "image"}
        record = {role: found[role] for role in ("category",) if found.get(role) is not None}
        messages = found.get("conversations")
        if isinstance(messages, str):
            messages = parse_record(messages.encode())
        pair = [found.get("question"), found.get("answer")]
        if pair != [None, None]:
            if messages:
                raise Refused("the row has 'conversations', and a question or an answer too: expected one", "malformed")
            messages = [{"from": role, "value": text} for role, text in zip(SPEAKERS, pair, strict=True)]
        if messages is not None:
            record["conversations"] = messages
        if names := [value.as_py() if self.holds == "path" else f"{i}:{n}" for n, value in enumerate(self._values(i))]:
            record["image"] = names
        return record

    def picture(self, name: str) -> tuple[str, Path | ParquetPicture]:
        if self.holds == "path":
            return picture_inside(self.image_folder, name)
        i, number = map(int, name.split(":"))
        if not self.held(i, number).is_valid:
            value = self._values(i)[number]
            if self.holds != "struct" or not value["path"].is_valid:
                raise Refused(f"its picture {number} has neither bytes nor a path", "missing picture")
            return picture_inside(self.image_folder, value["path"].as_py())
        shard, own = self.find(i)
        return f"{self.paths[shard]}:{own}:{number}", ParquetPicture(self, i, number)

    def held(self, i: int, number: int):
        """The bytes of a picture as Arrow's scalar, which may be null."""
        value = self._values(i)[number]
        return value["bytes"] if self.holds == "struct" and value.is_valid else value

    def _values(self, i: int):
        """What stands for each picture of a row; none of their bytes are copied."""
        if "image" not in self.columns:
            return []
        value = self.rows[i].column(self.columns["image"])[0]
        if not value.is_valid:
            return []
        return value.values if self.many else [value]


def _datasets():
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ValueError("ParquetDataset needs the package datasets: pip install -e '.[data]'") from error
    return datasets


def _metadata(path: str):
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_metadata(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} cannot be read as a Parquet file: {error}") from error


def _columns(path: str, columns: dict | None) -> dict[str, str]:
    """What is read -> its column."""
    there = _metadata(path).schema.to_arrow_schema().names
    own = {role: role for role in ROLES if role in there}
    if "conversations" in own:  # a question beside it is told, as a column that is not read
        own = {role: name for role, name in own.items() if role not in ("question", "answer")}
    columns = own | dict(columns or {})
    columns = {role: name for role, name in columns.items() if name is not None}
    if unknown := [role for role in columns if role not in ROLES]:
        raise ValueError(f"ParquetDataset: columns has {unknown[0]!r}: expected some of {', '.join(ROLES)}")
    if missing := [name for name in columns.values() if name not in there]:
        raise ValueError(f"{path} has no column {missing[0]!r}: it has {', '.join(there)}; name them in `columns`")
    if not columns.keys() & {"image", "conversations", "question"}:
        raise ValueError(
            f"{path} has neither pictures nor conversations under their own names: it has {', '.join(there)}; say in "
            "`columns` what is what, such as dict(image='picture', question='q', answer='a')"
        )
    for one, other in (("answer", "question"), ("question", "answer")):
        if one in columns and other not in columns and "conversations" not in columns:
            raise ValueError(f"{path} has a column for {one!r}, and none for {other!r}: name it in `columns`")
    return columns


def _holds_any(given) -> bool:
    return _holds(given, text=True) or _holds(given, text=False)


def _holds(given, *, text: bool) -> bool:
    """Whether a column's values hold texts, or else (``text=False``) pictures, as Arrow's type tells."""
    import pyarrow

    kinds = pyarrow.types
    if kinds.is_list(given) or kinds.is_large_list(given):
        return _holds(given.value_type, text=text)
    if kinds.is_struct(given):
        return any(_holds(field.type, text=text) for field in given)
    if text:
        return kinds.is_string(given) or kinds.is_large_string(given)
    return kinds.is_binary(given) or kinds.is_large_binary(given)


def _picture_type(row, column: str | None) -> tuple[bool, str | None]:
    """Whether a column has lists of pictures, and what one is: ``bytes``, ``struct`` or ``path``."""
    import pyarrow

    if column is None:
        return False, None
    kinds, given = pyarrow.types, row.schema.field(column).type
    many = kinds.is_list(given) or kinds.is_large_list(given)
    one = given.value_type if many else given
    if kinds.is_binary(one) or kinds.is_large_binary(one):
        return many, "bytes"
    if kinds.is_string(one) or kinds.is_large_string(one):
        return many, "path"
    if kinds.is_struct(one) and {"bytes", "path"} <= {field.name for field in one}:
        return many, "struct"
    raise ValueError(f"ParquetDataset: column {column!r} is {given}: expected bytes, paths, or dicts of bytes and path")
