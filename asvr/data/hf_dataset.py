"""Datasets of Hugging Face `datasets`, by name or from a folder."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asvr.base.log import logger
from asvr.data.file_index import file_index
from asvr.data.image_digest import Sample, sample_images
from asvr.data.image_sources import InlineImage, Source
from asvr.data.records import ConversationDataset
from asvr.data.samplers import ResumableSampler, WindowSampler
from asvr.data.stream import Stream, count_rows
from asvr.data.tables import TableImage, TableRecords, require_datasets
from asvr.registry import DATASETS

SAVED = ("state.json", "dataset_dict.json")  # files that save_to_disk writes
COMPARED = 64  # first rows of a stream, for its fingerprint


@DATASETS.register_module()
class HFDataset(TableRecords, ConversationDataset):
    """A dataset of Hugging Face `datasets`.

    path: a name on the Hugging Face Hub, a folder that ``save_to_disk`` wrote, or a folder of files that
    ``load_dataset`` reads (Parquet, Arrow, JSON, images with metadata, webdataset shards). A name is read from the
    cache of `datasets`; it is downloaded only with ``ASVR_DOWNLOAD=1``. name: a configuration of the dataset, as in
    ``load_dataset``. split: a part of the dataset, as in ``load_dataset``. revision: a branch, a tag or a commit on the
    Hub. columns: as in `ParquetDataset`. image_folder: the folder for paths; by default ``path``.

    streaming: read rows in order during training, without a copy of the data. The seed and the position decide each
    sample, as without streaming, so a run resumes exactly; the rows before are read again, but not decoded. Each worker
    reads the whole stream: one worker is usually best. window: with streaming, this number of rows is held in memory
    and shuffled with the seed. num_records: with streaming, the number of rows to use. By default it is the dataset's
    own count, or, for a folder, counted in one pass.

    Raises: ValueError if `datasets` is not installed, the dataset or split is missing or cannot be read, a column is
    missing, or the length of a stream is not known.
    """

    def __init__(
        self,
        *,
        path: str,
        name: str | None = None,
        split: str = "train",
        revision: str | None = None,
        columns: dict | None = None,
        image_folder: str = "",
        streaming: bool = False,
        window: int = 1000,
        num_records: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for key, value in dict(window=window, num_records=num_records).items():
            if value is not None and value < 1:
                raise ValueError(f"HFDataset: {key}={value}: expected at least 1")
        if num_records is not None and not streaming:
            raise ValueError("HFDataset: num_records needs streaming=True: use split='train[:100]' for the first rows")
        self.source = ":".join(part for part in (path, name, split) if part)
        folder = Path(path).expanduser()
        self.image_folder = os.path.abspath(image_folder or (folder if folder.is_dir() else "."))
        found = _load(path, folder, name, split, revision, streaming)
        self.in_order, self.window = streaming, window
        schema = found.data.schema if not streaming else _schema(found, self.source)
        self.choose_columns(schema, columns, self.source)
        used = found.select_columns(sorted(set(self.columns.values()))).with_format("arrow")
        if streaming:
            num_records = num_records or _length(found, used, folder, split, self.source)
            self.rows = Stream(used, length=num_records, window=window, source=self.source)
        else:
            self.rows = used
        if not len(self):
            raise ValueError(f"HFDataset: {self.source} has no records: expected at least one")
        self._fingerprint = _stream_fingerprint(self) if streaming else _table_fingerprint(found, split)

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> str:
        """See `ConversationDataset.fingerprint`. For a stream, only its first rows and its length count."""
        return self._fingerprint

    def sampler(self, seed: int) -> ResumableSampler:
        """The order in which training draws."""
        if self.in_order:
            return WindowSampler(length=len(self), window=self.window, seed=seed)
        return ResumableSampler(length=len(self), seed=seed)

    def image(self, name: str) -> tuple[str, Source]:
        key, source = super().image(name)
        if self.in_order and isinstance(source, TableImage):  # it may be opened after the window has moved on
            source = InlineImage(source.read())
        return key, source

    def images(self) -> Iterator[tuple[str, Source]]:
        if self.in_order:
            raise ValueError(
                f"{self.source}: data.cache and the `fit` of a tokenizer need a list of all images, and a stream has "
                "none: set streaming=False, or data.cache=False"
            )
        return super().images()

    def some_images(self, limit: int) -> Sample:
        length = min(len(self), self.window) if self.in_order else len(self)
        return sample_images(length, limit, self._images_of)

    def key_of(self, i: int, number: int) -> str:
        return f"{self.source}:{self._fingerprint}:{i}:{number}"

    def content_of(self, i: int, number: int) -> str:
        return hashlib.sha256(f"{self._fingerprint} {self.columns['image']} {i} {number}".encode()).hexdigest()


def _load(path: str, folder: Path, name: str | None, split: str, revision: str | None, streaming: bool):
    datasets = require_datasets("HFDataset")
    where = f"HFDataset: path={path!r}"
    if folder.is_file():
        readers = "ParquetDataset, TarDataset or LlavaDataset"
        raise ValueError(f"{where} is a file: give its folder, or read it with {readers}")
    if any((folder / file).is_file() for file in SAVED):
        for key, value in dict(name=name, revision=revision).items():
            if value is not None:
                raise ValueError(f"{where} is a folder of save_to_disk, which has no {key}: leave {key}={value!r} out")
        return _load_saved(datasets, folder, split, streaming, where)
    if not folder.is_dir() and str(path).count("/") > 1:
        raise ValueError(f"{where} is not a folder, and not a name on the Hub")
    try:
        with _offline(datasets, folder.is_dir() or os.environ.get("ASVR_DOWNLOAD") == "1"):
            place = str(folder) if folder.is_dir() else path
            return datasets.load_dataset(place, name, split=split, revision=revision, streaming=streaming)
    except Exception as error:  # for unexpected files, `datasets` and its readers raise errors of any kind
        why = " ".join(str(error.__cause__ or error).split())
        hint = ""
        if not folder.is_dir() and os.environ.get("ASVR_DOWNLOAD") != "1":
            hint = ". It is not a folder here; set ASVR_DOWNLOAD=1 to download it from the Hugging Face Hub"
        raise ValueError(f"{where}, split={split!r} cannot be read: {why}{hint}") from error


def _load_saved(datasets, folder: Path, split: str, streaming: bool, where: str):
    found = datasets.load_from_disk(str(folder))
    if isinstance(found, dict):
        if split not in found:
            raise ValueError(f"{where} has no split {split!r}: it has {', '.join(map(repr, found))}")
        found = found[split]
    elif found.split is None and split != "train":
        raise ValueError(f"{where} holds one data set without splits: leave split={split!r} out")
    elif str(found.split or split) != split:
        raise ValueError(f"{where} has only the split {str(found.split)!r}: set split={str(found.split)!r}")
    return found.to_iterable_dataset() if streaming else found


@contextmanager
def _offline(datasets, may_fetch: bool) -> Iterator[None]:
    """Let `datasets` download only if allowed. It reads its setting at import, which may have happened already."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not may_fetch
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _schema(stream, source: str):
    """The Arrow schema of a stream, from its first row."""
    first = next(iter(stream.with_format("arrow").iter(batch_size=1)), None)
    if first is None:
        raise ValueError(f"HFDataset: {source} has no records: expected at least one")
    return first.schema


def _length(stream, used, folder: Path, split: str, source: str) -> int:
    splits = stream.info.splits or {}
    if split in splits and splits[split].num_examples:
        return splits[split].num_examples
    if not folder.is_dir():
        raise ValueError(f"HFDataset: the number of rows of {source} is not known: set num_records")
    logger.info("%s: counting the rows of the stream, once (num_records=... saves that)", source)
    return count_rows(used)


def _table_fingerprint(found, split: str) -> str:
    """The fingerprint from the Arrow files that `datasets` keeps, or else from the table in memory."""
    digest = hashlib.sha256(json.dumps([len(found), found.column_names, split]).encode())
    files = [entry["filename"] for entry in found.cache_files]
    for file in files:
        digest.update(file_index(file, "an Arrow file, 1", lambda path: {}).sha256.encode())
    if not files:
        digest.update(found._fingerprint.encode())
    return digest.hexdigest()[:16]


def _stream_fingerprint(dataset: HFDataset) -> str:
    digest = hashlib.sha256(str(len(dataset)).encode())  # not its place, which may change
    for i in range(min(len(dataset), COMPARED, dataset.window)):
        row = dataset.rows[i].to_pylist()[0]
        digest.update(json.dumps(row, sort_keys=True, default=repr).encode())
    return digest.hexdigest()[:16]
