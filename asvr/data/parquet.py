"""Parquet files, through Hugging Face `datasets`."""

import os
from hashlib import sha256

import numpy as np

from asvr.data.file_index import FileIndex
from asvr.data.shards import ShardedDataset
from asvr.data.tables import TableRecords, require_datasets
from asvr.registry import DATASETS


@DATASETS.register_module()
class ParquetDataset(TableRecords, ShardedDataset):
    """Rows of Parquet files, read with Hugging Face `datasets`.

    `datasets` copies the used columns once to its cache of Arrow files (``$HF_DATASETS_CACHE``) and maps them into
    memory.

    columns: our name -> the column to read. The names are: ``image`` (the bytes of an image, the struct of bytes and
    path that `datasets` writes, a path, or a list of one of these); ``conversations`` (messages, also as JSON text);
    instead of it ``question`` and ``answer``, or ``caption``; and ``category``. By default, ``image`` is read from the
    column ``image`` or ``images``; ``conversations`` from ``conversations``, ``messages`` or ``conversation``; the
    others, except ``caption``, from the column of the same name. None: it is not read. image_folder: the folder for
    paths; by default the folder of the first file.

    See `ShardedDataset` for ``files`` and errors.

    Raises: ValueError if `datasets` is not installed, a file is not a Parquet file, a column is missing, or a column
    that is not read seems to have content and is not in ``ignore``.
    """

    kind = "rows of a Parquet file, 1"

    @staticmethod
    def scan(path: str) -> dict[str, np.ndarray]:
        return dict(rows=np.array([_metadata(path).num_rows], np.int64))

    @staticmethod
    def count(index: FileIndex) -> int:
        return int(index.arrays["rows"][0])

    def __init__(self, *, files: str | list, columns: dict | None = None, image_folder: str = "", **kwargs):
        datasets = require_datasets("ParquetDataset")
        super().__init__(files=files, **kwargs)
        first = self.paths[0]
        self.choose_columns(_metadata(first).schema.to_arrow_schema(), columns, first)
        self.image_folder = os.path.abspath(image_folder or os.path.dirname(first))
        try:
            rows = datasets.Dataset.from_parquet(self.paths, columns=sorted(set(self.columns.values())))
        except datasets.exceptions.DatasetGenerationError as error:
            raise ValueError(f"{self.source}: cannot be read as one table: {error.__cause__ or error}") from error
        assert len(rows) == len(self), f"{self.source}: {len(rows)} rows, {len(self)} by the files' own count"
        self.rows = rows.with_format("arrow")

    def key_of(self, i: int, number: int) -> str:
        shard, own = self.find(i)
        return f"{self.paths[shard]}:{own}:{number}"

    def content_of(self, i: int, number: int) -> str:
        shard, own = self.find(i)
        return sha256(f"{self.shards[shard].sha256} {self.columns['image']} {own} {number}".encode()).hexdigest()


def _metadata(path: str):
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_metadata(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} cannot be read as a Parquet file: {error}") from error
