"""Records from the rows of tables: Parquet files and Hugging Face `datasets`."""

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asvr.base.log_once import log_once
from asvr.data.conversation import ROLES as SPEAKERS
from asvr.data.image_sources import StoredImage
from asvr.data.llava import image_inside
from asvr.data.messages import CONVERSATIONS, IMAGES
from asvr.data.record_keys import DESCRIBES, WEIGHTS, is_content, meant_by, unknown_key
from asvr.data.refusals import Refused
from asvr.data.strict_json import parse_record
from asvr.data.templates import IMAGE_MARK

if TYPE_CHECKING:
    from asvr.data.image_sources import Source

ROLES = ("image", "conversations", "question", "answer", "caption", "category")
# Default columns of each role. A caption is only read if `columns` names it.
OWN_NAMES = dict(image=IMAGES, conversations=CONVERSATIONS) | {r: (r,) for r in ("question", "answer", "category")}
CELL = re.compile(r"(\d+):(\d+)")  # row and number of an image in the table


@dataclass(frozen=True, slots=True)
class TableImage(StoredImage):
    """One of the images of a row."""

    dataset: "TableRecords"
    row: int
    number: int

    def __str__(self) -> str:
        return f"{self.number} of {self.dataset.place(self.row)}"

    def read(self) -> bytes:
        return self.dataset.held(self.row, self.number).as_py()

    def sha256(self) -> str:
        return self.dataset.content_of(self.row, self.number)


class TableRecords:
    """The part of a `ConversationDataset` that reads rows of a table.

    A subclass sets ``rows`` (by number, each an Arrow table of one row) and ``image_folder``, calls `choose_columns`
    and writes `key_of` and `content_of`.

    columns: role -> column.
    """

    rows: object
    image_folder: str
    columns: dict[str, str]

    def key_of(self, i: int, number: int) -> str:
        """The cache key of an image in the table."""
        raise NotImplementedError(f"{type(self).__name__} must have key_of(i, number)")

    def content_of(self, i: int, number: int) -> str:
        """The SHA-256 of an image in the table, in hex, see `StoredImage.sha256`."""
        raise NotImplementedError(f"{type(self).__name__} must have content_of(i, number)")

    def choose_columns(self, schema, columns: dict | None, where: str) -> None:
        """Set ``columns`` and log the columns that are not read. schema: Arrow's. where: the table, for messages.

        Raises: ValueError if a column is missing, or a column that is not read seems to have content.
        """
        others = [name for name in schema.names if name in ROLES or name not in self.ignore]
        self.columns = _columns(schema.names, others, columns, where, type(self).__name__)
        if both := {name: role for role, name in self.columns.items() if name in self.ignore}:
            name, role = next(iter(both.items()))
            fix = f"columns=dict({role}=None) leaves it out"
            raise ValueError(f"{self.source}: ignore names the column {name!r}, which is read: {fix}")
        kind = schema.field(self.columns["image"]).type if "image" in self.columns else None
        self.many, self.holds = _image_type(kind, self.columns.get("image"), type(self).__name__)
        self._check_unread(schema)

    def _check_unread(self, schema) -> None:
        lacks_text = not self.columns.keys() & {"conversations", "question", "caption"}
        filled = [*([] if lacks_text else ["conversations"]), *(["image"] if "image" in self.columns else [])]
        unread = [field for field in schema if field.name not in {*self.columns.values(), *self.ignore}]
        for field in unread:
            name, meant = field.name.lower(), meant_by(field.name, filled)
            describes = name in DESCRIBES or name.endswith("_id")
            content = is_content(name, meant) and meant not in filled and _holds_any(field.type)
            lost = not describes and (content or name in WEIGHTS or (lacks_text and _holds(field.type, text=True)))
            if lost or ("image" not in self.columns and _holds(field.type, text=False)):
                raise ValueError(f"{self.source}: {unknown_key(field.name, meant, 'column')}, or name it in `columns`")
        if others := [field.name for field in unread if field.name.lower() not in DESCRIBES]:
            log_once(logging.INFO, "%s: columns that are not read: %s", self.source, ", ".join(others))

    def record(self, i: int) -> dict:
        row = self.rows[i]
        found = {role: row.column(name)[0].as_py() for role, name in self.columns.items() if role != "image"}
        record = {role: found[role] for role in ("category",) if found.get(role) is not None}
        messages = found.get("conversations")
        if isinstance(messages, str):
            messages = parse_record(messages.encode())
        images = self._images(i)
        pair = [found.get("question"), found.get("answer")]
        if "caption" in self.columns:
            pair = ["\n".join([IMAGE_MARK] * len(images)), found["caption"]]
        if pair != [None, None]:
            if messages:
                raise Refused("the row has 'conversations' and a question or an answer: expected one", "malformed")
            messages = [{"from": role, "value": text} for role, text in zip(SPEAKERS, pair, strict=True)]
        if messages is not None:
            record["conversations"] = messages
        if names := [value.as_py() if self.holds == "path" else f"{i}:{n}" for n, value in enumerate(images)]:
            record["image"] = names
        return record

    def image(self, name: str) -> "tuple[str, Source]":
        place = CELL.fullmatch(name) if self.holds in ("bytes", "struct") else None
        if place is None:
            return image_inside(self.image_folder, name)
        i, number = map(int, place.groups())
        if not self.held(i, number).is_valid:
            value = self._images(i)[number]
            if self.holds != "struct" or not value["path"].is_valid:
                raise Refused(f"image {number} of the row has neither bytes nor a path", "missing image")
            return image_inside(self.image_folder, value["path"].as_py())
        return self.key_of(i, number), TableImage(self, i, number)

    def held(self, i: int, number: int):
        """The bytes of an image as an Arrow scalar, which may be null."""
        value = self._images(i)[number]
        return value["bytes"] if self.holds == "struct" and value.is_valid else value

    def _images(self, i: int):
        """The Arrow values of the images of a row. Their bytes are not copied."""
        if "image" not in self.columns:
            return []
        value = self.rows[i].column(self.columns["image"])[0]
        if not value.is_valid:
            return []
        return value.values if self.many else [value]


def _columns(there: list[str], free: list[str], columns: dict | None, where: str, kind: str) -> dict[str, str]:
    """Role -> column. free: the columns that may be read by default."""
    own = {role: name for role, names in OWN_NAMES.items() for name in reversed(names) if name in free}
    if "conversations" in own:  # a question beside it is logged as a column that is not read
        own = {role: name for role, name in own.items() if role not in ("question", "answer")}
    if (columns or {}).get("caption") is not None:
        own = {role: name for role, name in own.items() if role in ("image", "category")}
    columns = own | dict(columns or {})
    columns = {role: name for role, name in columns.items() if name is not None}
    if unknown := [role for role in columns if role not in ROLES]:
        raise ValueError(f"{kind}: columns has {unknown[0]!r}: expected some of {', '.join(ROLES)}")
    if missing := [name for name in columns.values() if name not in there]:
        raise ValueError(f"{where} has no column {missing[0]!r}: it has {', '.join(there)}; name them in `columns`")
    if "caption" in columns and (beside := sorted(columns.keys() & {"conversations", "question", "answer"})):
        raise ValueError(f"{kind}: columns has 'caption' and {beside[0]!r}: expected only one of them")
    if not columns.keys() & {"image", "conversations", "question"}:
        raise ValueError(
            f"{where} has no column for images or conversations: it has {', '.join(there)}; name them in `columns`, "
            "such as dict(image='photo', question='q', answer='a')"
        )
    for one, other in (("answer", "question"), ("question", "answer"), ("caption", "image")):
        if one in columns and other not in columns and "conversations" not in columns:
            raise ValueError(f"{where} has a column for {one!r}, but none for {other!r}: name it in `columns`")
    return columns


def _holds_any(given) -> bool:
    return _holds(given, text=True) or _holds(given, text=False)


def _holds(given, *, text: bool) -> bool:
    """Whether the Arrow type of a column has texts, or with ``text=False``, the bytes of images."""
    import pyarrow

    kinds = pyarrow.types
    if kinds.is_list(given) or kinds.is_large_list(given):
        return _holds(given.value_type, text=text)
    if kinds.is_struct(given):
        return any(_holds(field.type, text=text) for field in given)
    if text:
        return kinds.is_string(given) or kinds.is_large_string(given)
    return kinds.is_binary(given) or kinds.is_large_binary(given)


def _image_type(given, column: str | None, kind: str) -> tuple[bool, str | None]:
    """Whether a column has lists of images, and the form of one: ``bytes``, ``struct`` or ``path``. given: its type."""
    import pyarrow

    if column is None:
        return False, None
    kinds = pyarrow.types
    many = kinds.is_list(given) or kinds.is_large_list(given)
    one = given.value_type if many else given
    if kinds.is_binary(one) or kinds.is_large_binary(one):
        return many, "bytes"
    if kinds.is_string(one) or kinds.is_large_string(one):
        return many, "path"
    if kinds.is_struct(one) and {"bytes", "path"} <= {field.name for field in one}:
        return many, "struct"
    raise ValueError(f"{kind}: column {column!r} is {given}: expected bytes, paths, or dicts of bytes and path")


def require_datasets(kind: str):
    """The package `datasets`. Raises ``ValueError`` if it is not installed."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ValueError(f"{kind} needs the package datasets: pip install 'asvr[data]'") from error
    return datasets
