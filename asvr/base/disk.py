"""Disk space: checked before large writes, and reported in one line if the disk is full anyway."""

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("asvr")  # not from asvr.base.log, which imports `naming`
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def require_room(folder: Path, needed: int, what: str, budget_gb: float | None = None) -> None:
    """Check that ``needed`` bytes of ``what`` fit on the disk, and log it. budget_gb: ``data.cache_budget_gb``.

    Raises ``ValueError`` if they exceed the budget or the free space under ``folder``.
    """
    free = shutil.disk_usage(folder).free
    logger.info("%s: %.3g GB of disk, %.1f GB are free in %s", what, needed / 1e9, free / 1e9, folder)
    if budget_gb is not None and needed > budget_gb * 1e9:
        raise ValueError(f"{what} take {needed / 1e9:.3g} GB, more than data.cache_budget_gb={budget_gb}: raise it")
    if needed > free:
        raise ValueError(f"{folder}: {what} take {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free: use another disk")


def full_disk(error: BaseException | None) -> OSError | None:
    """The cause of ``error`` that says that a disk or quota is full, or a file too large; else None.

    torch's writer hides it in the context of its error. Libraries written in Rust (safetensors, tokenizers) and other
    processes have it in the text of their message.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        if (match := re.search(r"(?:os error |\[Errno )(\d+)", str(error))) and int(match[1]) in _FULL:
            return OSError(int(match[1]), os.strerror(int(match[1])))
        error = error.__cause__ or error.__context__
    return None


def in_bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def free_bytes(path: Path) -> int:
    """The free bytes on the disk of ``path``, which need not exist."""
    return shutil.disk_usage(next(place for place in (path, *path.absolute().parents) if place.exists())).free


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Turn the error of a full disk into a ``ValueError`` that names the file; Python's own error does not."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ValueError(
            f"{file} cannot be written: {error.strerror}; {in_bytes(free_bytes(file))} are free. Make room and run the "
            "same command again"
        ) from error
