"""Datasets whose records stand in several files."""

import hashlib
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from glob import glob

import numpy as np

from asvr.base.log import progress_bar
from asvr.data.file_index import FileIndex, file_index
from asvr.data.records import ConversationDataset

BRACES = re.compile(r"\{(?:(?P<first>\d+)\.\.(?P<last>\d+)|(?P<choices>[^{},]*(?:,[^{},]*)+))\}")  # innermost
READERS = 8  # threads that index files; Python runs hashing and reading in parallel


class ShardedDataset(ConversationDataset):
    """A dataset whose records stand in several files.

    A subclass sets ``kind`` and writes ``scan`` and ``count``, besides what a `ConversationDataset` needs.

    files: a pattern (``shards/*.tar``, ``shards/{00000..00123}.tar``), or a list of names and patterns. Records follow
    this order. The files of ``*``, ``?`` and ``[...]`` are sorted; those of braces have the order of the braces.

    Raises: ValueError if a pattern matches no file, or the files have no records.
    """

    kind: str  # of the index of each file, see `asvr.data.file_index.file_index`

    @staticmethod
    def scan(path: str) -> dict[str, np.ndarray]:
        """The arrays for the index of a file."""
        raise NotImplementedError("a subclass must have scan(path)")

    @staticmethod
    def count(index: FileIndex) -> int:
        """The number of records in a file."""
        raise NotImplementedError("a subclass must have count(index)")

    def __init__(self, *, files: str | list, **kwargs):
        super().__init__(**kwargs)
        self.source = files if isinstance(files, str) else ", ".join(files)
        self.paths = find_files(files, type(self).__name__)
        self.shards = self._indexes()
        self.ends = np.cumsum([self.count(shard) for shard in self.shards])
        if not len(self):
            raise ValueError(f"{type(self).__name__}: files={self.source!r} have no records: expected at least one")

    def _indexes(self) -> list[FileIndex]:
        found = []
        with (
            ThreadPoolExecutor(READERS) as readers,
            progress_bar(total=len(self.paths), desc="index", unit="file", disable=len(self.paths) < READERS) as bar,
        ):
            for index in readers.map(lambda path: file_index(path, self.kind, self.scan), self.paths):
                found.append(index)
                bar.update()
        return found

    def __len__(self) -> int:
        return int(self.ends[-1])

    def find(self, i: int) -> tuple[int, int]:
        """The number of the file that record ``i`` is in, and the number of the record there."""
        shard = int(np.searchsorted(self.ends, i, side="right"))
        return shard, i - (int(self.ends[shard - 1]) if shard else 0)

    def sample_id(self, i: int) -> str:
        shard, own = self.find(i)
        return f"{self.paths[shard]}:{own}"

    def place(self, i: int) -> str:
        shard, own = self.find(i)
        return f"{self.paths[shard]}, record {own}"

    def fingerprint(self) -> str:
        return hashlib.sha256(" ".join(shard.sha256 for shard in self.shards).encode()).hexdigest()[:16]


def expand_braces(pattern: str) -> list[str]:
    """Expand braces as a shell does: ``{a,b}``, and ``{08..12}`` with the same number of digits."""
    match = BRACES.search(pattern)
    if match is None:
        return [pattern]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    if match["first"] is None:
        choices = match["choices"].split(",")
    else:
        first, last = int(match["first"]), int(match["last"])
        numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        choices = [str(number).zfill(len(match["first"])) for number in numbers]
    return [name for choice in choices for name in expand_braces(head + choice + tail)]


def find_files(files: str | list, what: str) -> list[str]:
    """The files of a pattern, or of a list of names and patterns. what: the dataset, for messages.

    Raises: ValueError if a pattern matches no file, or a file is matched twice.
    """
    found = []
    for given in [files] if isinstance(files, str) else files:
        for pattern in [given] if os.path.isfile(given) else expand_braces(given):
            own = [pattern] if os.path.isfile(pattern) else sorted(filter(os.path.isfile, glob(pattern)))
            if not own:
                whole = "" if pattern == given else f" (of {given!r})"
                raise ValueError(f"{what}: files={pattern!r}{whole} matches no file: correct the path")
            found += own
    if twice := [path for path, count in Counter(found).items() if count > 1]:
        raise ValueError(f"{what}: files={files!r} matches {twice[0]} twice: expected each file once")
    return found
