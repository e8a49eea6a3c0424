"""The index of a large data file: the places of its records, and its SHA-256. It is made once and kept.

The index is a safetensors file beside the data file, ``<name>.asvr-index``. If that folder cannot be written, it is in
``$ASVR_CACHE`` (default ``~/.cache/asvr``). It records the size, the modification time and the SHA-256 of both ends of
the data file; if one of them differs, the index is made again. Its arrays are mapped into memory, so opening is fast.
"""

import fcntl
import hashlib
import json
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from asvr.base import compat
from asvr.base.files import sha256_of
from asvr.base.log import logger
from asvr.base.log_once import log_once

SUFFIX = ".asvr-index"
KEPT_FROM = 1 << 24  # bytes: smaller files are quickly read again, and no new file surprises the user
END = 1 << 16  # bytes at each end
SETTLED = 2.0  # seconds: a file that changes twice within one clock tick may keep its size and modification time


@dataclass(frozen=True)
class FileIndex:
    """The index of a file. arrays: the result of the scan. sha256: of the complete file, in hex."""

    arrays: dict[str, np.ndarray]
    sha256: str


def file_index(path: str, kind: str, scan: Callable[[str], dict[str, np.ndarray]]) -> FileIndex:
    """The index of a file: the result of ``scan(path)``, either kept from before or made now.

    kind: the name and version of the scan. If several processes need the index, only one makes it. Raises
    ``ValueError`` if the file changes during the scan.
    """
    if os.path.getsize(path) < KEPT_FROM:
        return FileIndex(scan(path), sha256_of(Path(path)))
    places = _places(path)
    if (found := _read(path, kind, places)) is not None:
        return found
    with _one_at_a_time(path):
        if (found := _read(path, kind, places)) is not None:  # another process was faster
            return found
        logger.info("%s: indexing %.1f GB (once)", path, os.path.getsize(path) / 1e9)
        before, began = _identity(path, kind), time.time()
        index = FileIndex(scan(path), sha256_of(Path(path)))
        if _identity(path, kind) != before:
            raise ValueError(f"{path} changed while it was read: run again when the file is complete")
        if began - os.stat(path).st_mtime > SETTLED:
            _keep(index, before, places)
        return index


def cache_folder() -> Path:
    """``$ASVR_CACHE``, by default ``~/.cache/asvr``."""
    return Path(os.environ.get("ASVR_CACHE") or "~/.cache/asvr").expanduser()


def _places(path: str) -> list[Path]:
    """Places for an index, the best one first."""
    whole = os.path.abspath(path)
    digest = hashlib.sha256(os.fsencode(whole)).hexdigest()[:16]
    return [Path(whole + SUFFIX), cache_folder() / "index" / f"{os.path.basename(whole)}-{digest}{SUFFIX}"]


def _identity(path: str, kind: str) -> dict[str, str]:
    stat = os.stat(path)
    with open(path, "rb") as file:
        ends = hashlib.sha256(file.read(END))
        file.seek(max(0, stat.st_size - END))
        ends.update(file.read(END))
    return dict(kind=kind, size=str(stat.st_size), mtime_ns=str(stat.st_mtime_ns), ends=ends.hexdigest())


def _read(path: str, kind: str, places: list[Path]) -> FileIndex | None:
    now = None
    for place in places:
        header = _header(place) if place.is_file() else None
        if header is None:
            continue
        now = now or _identity(path, kind)
        known, start, arrays = header
        if {key: known.get(key) for key in now} == now:
            return FileIndex({name: _mapped(place, start, array) for name, array in arrays.items()}, known["sha256"])
    return None


def _header(place: Path) -> tuple[dict, int, dict] | None:
    """The header of a safetensors file: metadata, begin of the arrays and their description. None if incomplete."""
    with open(place, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length < 1 << 20:
            return None
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return None
    known = header.pop("__metadata__", {})
    whole = 8 + length + max((array["data_offsets"][1] for array in header.values()), default=0)
    return (known, 8 + length, header) if os.path.getsize(place) == whole else None


def _mapped(place: Path, start: int, array: dict) -> np.ndarray:
    dtype = dict(I64=np.int64, U8=np.uint8)[array["dtype"]]
    shape = tuple(array["shape"])
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(place, dtype, "r", offset=start + array["data_offsets"][0], shape=shape)


def _keep(index: FileIndex, identity: dict[str, str], places: list[Path]) -> None:
    for place in places:
        partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            save_file(index.arrays, partial, metadata=identity | dict(sha256=index.sha256))
            compat.give_mode_of_new_files(partial)
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, place)
            return
        except (OSError, SafetensorError) as error:
            log_once(logging.WARNING, "%s: the index cannot be kept there (%s)", place, error)
            if os.path.exists(partial):
                os.remove(partial)


@contextmanager
def _one_at_a_time(path: str) -> Iterator[None]:
    """Lock the data file, so that one process works at a time. No lock file is left."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # the file system has no locks: the work may be done twice
            log_once(logging.INFO, "%s cannot be locked (%s)", path, error)
        yield


class FileReader:
    """A reader of byte ranges of one file.

    It uses ``pread``, so forked processes can share the open file. A pickled reader opens the file again."""

    def __init__(self, path: str):
        self.path, self._handle = path, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def __call__(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` to ``end``. Raises ``OSError`` if the file cannot be read."""
        return os.pread(self._handle, int(end) - int(start), int(start))

    def __reduce__(self) -> tuple:
        return FileReader, (self.path,)
