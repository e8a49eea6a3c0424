"""The cache of target codes. Codes are computed once for each image content and memory-mapped during training.

Legend: ``I`` images, ``N`` visual tokens of an image, ``D`` code depth.

A store is a folder. Its name depends on everything that decides the codes besides the image. It grows by appending::

  store.json           what it is: tokenizer, shape, dtype (written first)
  codes.<part>.bin     rows of N * D numbers, one after another
  index.<part>.jsonl   a line for each row: the SHA-256 of the image's bytes and the CRC-32 of the row

A row counts when its line is complete; what a killed process left after it is cut off. Each of several processes that
compute codes writes its own part. A reader reads all parts.
"""

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asvr.base.files import sha256_of
from asvr.base.log import logger, progress_bar
from asvr.data.image_sources import RenderedImage, Source, StoredImage, has_file
from asvr.data.images import check_file, image_bytes
from asvr.data.refusals import Refused
from asvr.models.tokenizers.base import code_dtype, require_codes

STORE, FILES = "store.json", "files.jsonl"
CHUNK = 4096  # files that wait for a thread
READERS = 8  # threads that read and hash files; Python runs these in parallel


class CodeStore:
    """The codes of one target's tokenizer, by image content.

    depends_on: what decides the codes besides the image; the folder is ``root/<name>-<digest of it>``. shape: (N, D).
    size: of the largest codebook; it decides the dtype, and larger codes are refused. Raises ``ValueError`` if the
    folder has other codes.
    """

    def __init__(self, root: Path, name: str, *, depends_on: dict, shape: tuple[int, int], size: int):
        digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.sizes = [size] * shape[1]
        self.folder, self.name, self.shape = root / f"{name}-{digest}", name, shape
        self.dtype = np.dtype(str(code_dtype(size)).removeprefix("torch."))
        self.row_bytes = shape[0] * shape[1] * self.dtype.itemsize
        self.rows: dict[str, tuple[np.memmap, int, int]] = {}  # sha256 -> (part, row, crc32)
        self.refused: dict[str, tuple[str, str]] = {}  # sha256 -> (message, reason)
        description = dict(shape=list(shape), dtype=self.dtype.name, depends_on=depends_on)
        description = json.loads(json.dumps(description, default=str))
        file = self.folder / STORE
        if file.is_file():
            if _read_json(file) != description:
                raise ValueError(f"{file}: describes other codes than {name!r} needs: delete {self.folder}")
            self.reload()
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            _replace(file, json.dumps(description, indent=1) + "\n")

    def refusal(self, sha256: str) -> tuple[str, str] | None:
        """Message and reason if an image could not be read. It is tried again whenever codes are computed."""
        return None if sha256 in self.rows else self.refused.get(sha256)

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self.rows or sha256 in self.refused

    def __getitem__(self, sha256: str) -> np.ndarray:
        """The row (N, D) of an image. Raises ``ValueError`` if its bytes have changed since they were written."""
        part, row, crc32 = self.rows[sha256]
        values = part[row]
        if zlib.crc32(values.tobytes()) != crc32:
            raise ValueError(f"{part.filename}: row {row} is damaged: delete {self.folder} to compute its codes anew")
        return values

    def _read_part(self, index: Path) -> None:
        data = self._data(index)
        available = data.stat().st_size // self.row_bytes if data.is_file() else 0
        part = np.memmap(data, self.dtype, "r", shape=(available, *self.shape)) if available else None
        lost = 0
        for entry in _entries(index):
            if "refused" in entry:
                self.refused[entry["sha256"]] = tuple(entry["refused"])
            elif entry["row"] < available:
                self.rows[entry["sha256"]] = (part, entry["row"], entry["crc32"])
            else:
                lost += 1
        if lost:
            logger.warning("%s: %d rows of its index are missing; they are computed again", data, lost)

    @staticmethod
    def _data(index: Path) -> Path:
        return index.with_name(index.name.replace("index.", "codes.")).with_suffix(".bin")

    def writer(self, part: str) -> "Writer":
        return Writer(self, self.folder / f"index.{part}.jsonl", self._data(self.folder / f"index.{part}.jsonl"))

    def reload(self) -> None:
        """Read again, with the rows that were written since."""
        self.rows.clear()
        for index in sorted(self.folder.glob("index.*.jsonl")):
            self._read_part(index)


class Writer:
    """A writer that appends rows to one part of a store.

    It writes the data first and the lines of the index after them, so that each line has its row. Raises ``ValueError``
    if another process is writing the part.
    """

    def __init__(self, store: CodeStore, index: Path, data: Path):
        self.store = store
        self.data = open(os.open(data, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        _lock(self.data, data)
        available = os.path.getsize(data) // store.row_bytes
        entries = list(_entries(index)) if index.is_file() else []
        kept = [entry for entry in entries if entry.get("row", -1) < available]
        self.count = 1 + max((entry["row"] for entry in kept if "row" in entry), default=-1)
        _replace(index, "".join(json.dumps(entry) + "\n" for entry in kept))
        self.index = open(index, "a", encoding="utf-8")
        self.data.truncate(self.count * store.row_bytes)
        self.data.seek(0, 2)

    def add(self, sha256: list[str], codes_IND: Tensor) -> None:
        """Append codes. Raises ``ValueError`` if they do not fit the store; then nothing is written."""
        what = f"codes of target {self.store.name!r}"
        rows = require_codes(codes_IND, what, self.store.sizes).numpy().astype(self.store.dtype)
        if rows.shape != (len(sha256), *self.store.shape):
            raise ValueError(f"{what} have the shape {rows.shape}, expected {(len(sha256), *self.store.shape)}")
        self.data.write(rows.tobytes())
        self.data.flush()
        for key, row in zip(sha256, rows, strict=True):
            self._line(dict(sha256=key, row=self.count, crc32=zlib.crc32(row.tobytes())))
            self.count += 1
        self.index.flush()

    def refuse(self, sha256: str, message: str, reason: str) -> None:
        if self.store.refused.get(sha256) != (message, reason):
            self._line(dict(sha256=sha256, refused=[message, reason]))

    def _line(self, entry: dict) -> None:
        self.index.write(json.dumps(entry) + "\n")

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        self.index.close()
        self.data.close()


def _replace(file: Path, text: str) -> None:
    """Write a file atomically, so that other processes never see a part of it."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def _lock(file, path: Path) -> None:
    """Lock a file until it is closed or the process ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ValueError(f"{path}: another process is writing it: wait for it, or give --shard i/n") from error
    except OSError as error:  # a file system without locks
        logger.warning("%s cannot be locked (%s): make sure that no other process writes it", path, error)


def _entries(index: Path) -> Iterator[dict]:
    """The lines of an index, without an incomplete last line. Raises ``ValueError`` for a damaged line."""
    for number, line in enumerate(index.read_bytes().split(b"\n")[:-1], start=1):
        try:
            entry = json.loads(line)
            refused = entry.get("refused")
            if refused is None:
                whole = min(int(entry["row"]), int(entry["crc32"])) >= 0
            else:
                whole = len(refused) == 2 and all(isinstance(text, str) for text in refused)
            whole = whole and isinstance(entry["sha256"], str)
        except (ValueError, TypeError, KeyError, AttributeError):
            whole = False
        if not whole:
            raise ValueError(f"{index}: line {number} is damaged: delete {index.parent} to compute its codes anew")
        yield entry


def _read_json(file: Path):
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: damaged ({error}): delete {file.parent} to compute its codes anew") from error


class CodeCache:
    """The cache of codes for ``Collate``, over the stores of all targets. It has no features.

    hashes: image key -> SHA-256 of its bytes. stores: target name -> `CodeStore`.
    """

    def __init__(self, hashes: dict[str, str], stores: dict[str, CodeStore]):
        self.hashes, self.stores = hashes, stores

    def check(self, keys: list[str]) -> None:
        """Raise `Refused` if one of the images could not be read when its codes were computed."""
        for key in keys:
            for store in self.stores.values():
                if (refusal := store.refusal(self.hashes[key])) is not None:
                    raise Refused(*refusal)

    def features(self, keys: list[str]) -> None:
        return None

    def truth(self, target: str, keys: list[str]) -> dict[str, Tensor] | None:
        """``codes`` (I, N, D), or None for a target without a store."""
        if target not in self.stores:
            return None
        store = self.stores[target]
        return dict(codes=torch.from_numpy(np.stack([store[self.hashes[key]] for key in keys])))


def hash_images(root: Path, images: dict) -> dict[str, str]:
    """Image key -> SHA-256 of its bytes, or of what decides them (`StoredImage.sha256`).

    ``root/files.jsonl`` keeps the hashes of files. A file is read again only if its size or
    modification time has changed."""
    file = root / FILES
    known, found = _known_files(file), {}
    root.mkdir(parents=True, exist_ok=True)
    paths = {key: Path(source).absolute() for key, source in images.items() if has_file(source)}
    with (
        open(file, "a", encoding="utf-8") as out,
        ThreadPoolExecutor(READERS) as readers,
        progress_bar(total=len(set(paths.values())), desc="hashes of images", unit="image") as bar,
    ):
        unique = iter(dict.fromkeys(paths.values()))
        while chunk := list(islice(unique, CHUNK)):
            for path, (sha256, line) in zip(chunk, readers.map(lambda path: _hash(path, known), chunk), strict=True):
                found[path] = sha256
                if line is not None:
                    out.write("\n" + json.dumps(line))
                bar.update()
    for key, source in images.items():
        if key not in paths:
            found[key] = _hash_of(source)
    return {key: found[paths.get(key, key)] for key in images}


def _hash_of(image: Source) -> str:
    if isinstance(image, StoredImage | RenderedImage):
        return image.sha256()
    try:
        return hashlib.sha256(image_bytes(image)).hexdigest()
    except Refused as error:  # reported when the image is opened
        return hashlib.sha256(str(error).encode()).hexdigest()


def _hash(path: Path, known: dict) -> tuple[str, list | None]:
    """SHA-256 of a file, and the line for ``files.jsonl`` if the file had to be read."""
    try:
        check_file(path)
        stat = path.stat()
        state = [stat.st_size, stat.st_mtime_ns]
        seen, sha256 = known.get(str(path), (None, None))
        if seen == state:
            return sha256, None
        sha256 = sha256_of(path)
    except (OSError, Refused) as error:  # reported when the image is opened
        return hashlib.sha256(str(error).encode()).hexdigest(), None
    return sha256, [str(path), *state, sha256]


def _known_files(file: Path) -> dict[str, tuple[list[int], str]]:
    """path -> (size and modification time, SHA-256)."""
    known = {}
    for line in file.read_text(errors="replace", encoding="utf-8").split("\n") if file.is_file() else []:
        try:
            path, size, changed, sha256 = json.loads(line)
            known[path] = ([size, changed], sha256)
        except (ValueError, TypeError):  # incomplete, from a killed process: the image is read again
            continue
    return known
