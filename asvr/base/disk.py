"""Room on the disk: checked before much is written, and told in one line where it runs out all the same."""

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("asvr")  # not from asvr.base.log, which names a full disk with `naming`
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def require_room(folder: Path, needed: int, what: str, budget_gb: float | None = None) -> None:
    """Log what ``needed`` bytes of ``what`` are against the disk. budget_gb: ``data.cache_budget_gb``.

    Raises ``ValueError`` where they are more than that, or than what is free under ``folder``.
    """
    free = shutil.disk_usage(folder).free
    logger.info("%s: %.3g GB of disk, %.1f GB are free in %s", what, needed / 1e9, free / 1e9, folder)
    if budget_gb is not None and needed > budget_gb * 1e9:
        raise ValueError(f"{what} take {needed / 1e9:.3g} GB, more than data.cache_budget_gb={budget_gb}")
    if needed > free:
        raise ValueError(f"{folder}: {what} take {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free: use another disk")


def full_disk(error: BaseException | None) -> OSError | None:
    """The error behind ``error`` that says that a disk or a quota is full or a file too large, or None.

    torch's own writer hides it as a context; libraries written in Rust (safetensors, tokenizers) have it in the words
    of their message, as other processes do.
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
    """Where ``path`` is, or would be made."""
    return shutil.disk_usage(next(place for place in (path, *path.absolute().parents) if place.exists())).free


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Name the file that there was no room for, which Python's own error does not: ``ValueError``."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ValueError(
            f"{file} cannot be written: {error.strerror}; {in_bytes(free_bytes(file))} are free. Make room and run the "
            "same command again"
        ) from error
