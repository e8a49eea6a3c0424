"""Records that stand in several files, one behind another."""

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

BRACES = re.compile(r"\{(?:(?P<first>\d+)\.\.(?P<last>\d+)|(?P<choices>[^{},]*(?:,[^{},]*)+))\}")  # the innermost
READERS = 8  # threads that index files; hashing and reading let one another go on


class ShardedDataset(ConversationDataset):
    """A subclass sets ``kind`` and writes ``scan`` and ``count``, and what a `ConversationDataset` needs besides.

    files: a pattern (``shards/*.tar``, ``shards/{00000..00123}.tar``), or a list of names and patterns. Records keep
    that order; the files of ``*``, ``?`` and ``[...]`` are sorted, those of braces stand in the order of the braces.

    Raises: ValueError where a pattern names no file, or the files hold no record.
    """

    kind: str  # of each file's index, see `asvr.data.file_index.file_index`

    @staticmethod
    def scan(path: str) -> dict[str, np.ndarray]:
        """What a file's index holds."""
        raise NotImplementedError("a subclass must scan its files")

    @staticmethod
    def count(index: FileIndex) -> int:
        """The records of a file."""
        raise NotImplementedError("a subclass must count its records")

    def __init__(self, *, files: str | list, **kwargs):
        super().__init__(**kwargs)
        self.source = files if isinstance(files, str) else ", ".join(files)
        self.paths = find_files(files, type(self).__name__)
        self.shards = self._indexes()
        self.ends = np.cumsum([self.count(shard) for shard in self.shards])
        if not len(self):
            raise ValueError(f"{type(self).__name__}: files {self.source!r} hold no record")

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
        """The file that record ``i`` is in, and its number there."""
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
    """The names of a pattern with braces, as a shell writes them: ``{a,b}``, and ``{08..12}`` with as many digits."""
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

    Raises: ValueError where a pattern finds none, or where a file is found twice.
    """
    found = []
    for given in [files] if isinstance(files, str) else files:
        for pattern in [given] if os.path.isfile(given) else expand_braces(given):
            own = [pattern] if os.path.isfile(pattern) else sorted(filter(os.path.isfile, glob(pattern)))
            if not own:
                told = "" if pattern == given else f" (of {given!r})"
                raise ValueError(f"{what}: files {pattern!r}{told} names no file")
            found += own
    if twice := [path for path, count in Counter(found).items() if count > 1]:
        raise ValueError(f"{what}: files={files!r} names a file twice: {twice[0]}")
    return found
