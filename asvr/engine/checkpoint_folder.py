"""Manages the folders of checkpoints: writes them completely or not at all, finds damaged ones, and removes old ones.

A folder is written as ``.step_N.partial`` and renamed when it is complete. If a step is saved again, its old folder is
first renamed to ``.step_N.old``. So if a process is killed at any time, either ``step_N`` is complete, or
``.step_N.old`` is complete and `clean` brings it back. ``checkpoint.json`` has the SHA-256 of every other file.
"""

import json
import os
import shutil
from functools import lru_cache
from pathlib import Path

from asvr.base.disk import free_bytes, full_disk, in_bytes
from asvr.base.distributed import from_main, gather, get_rank, get_world_size, is_main_process, wait
from asvr.base.files import sha256_of
from asvr.base.log import logger

PREFIX = "step_"
META = "checkpoint.json"
DAMAGED, LATER = "damaged_", "later_"

# Writing --------------------------------------------------------------------------------------------------


def begin(folder: Path) -> Path:
    """Make a new empty folder, which `finish` renames to ``folder``."""
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def finish(folder: Path, meta: dict, sha256: dict[str, str]) -> None:
    """Write the description of a complete folder, and give it its final name. sha256: of each file, by its name."""
    partial, old = _partial(folder), folder.with_name(f".{folder.name}.old")
    (partial / META).write_text(json.dumps(dict(meta, sha256=sha256), indent=1), encoding="utf-8")
    flush(partial / META)
    for place in (partial, *(path for path in partial.iterdir() if path.is_dir())):
        flush(place)
    if folder.exists():  # the step is saved again: move the old folder away, so that a half one never has the name
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(partial, folder)
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def abandon(folder: Path) -> None:
    """Remove what was written since `begin`."""
    shutil.rmtree(_partial(folder), ignore_errors=True)


def require_room(folder: Path, needed: int) -> None:
    """Raise ``ValueError`` if the disk of ``folder`` has less than ``needed`` bytes free."""
    if needed > free_bytes(folder):
        raise ValueError(no_room(folder, needed, "the disk is too small"))


def no_room(folder: Path, needed: int, why: str) -> str:
    """The error message for a checkpoint that the disk has no room for."""
    return (
        f"{folder} cannot be written: {why}; it needs {in_bytes(needed)}, {in_bytes(free_bytes(folder))} are free. The "
        f"last good checkpoint is {newest(folder.parent)}. Make room and run the same command again"
    )


def with_reason(folder: Path, needed: int, error: Exception) -> Exception:
    """Return ``error``, or a ``ValueError`` that explains it if the disk was full."""
    full = full_disk(error)
    return error if full is None else ValueError(no_room(folder, needed, full.strerror))


def prune(folder: Path, keep: int) -> None:
    """Delete all checkpoints under ``folder`` but the newest ``keep`` ones."""
    for old in sorted(folder.glob(f"{PREFIX}*"))[:-keep]:
        gone = _partial(old)  # rename it first, so that a kill leaves no half checkpoint under the final name
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(old, gone)
        shutil.rmtree(gone)


def flush(path: Path) -> None:
    """Write a file, or the list of names of a folder, from the system's memory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


# Reading --------------------------------------------------------------------------------------------------


def read_meta(folder: Path) -> dict:
    """Read ``checkpoint.json``. Raises ``ValueError`` if it is missing or damaged."""
    file = folder / META
    if not file.is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no {META}; delete it")
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(meta, dict) or not isinstance(meta.get("sha256"), dict):
            raise ValueError("it has no list of files")
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): delete {folder} to go on from the one before") from error
    return meta


def newest(folder: Path) -> Path | None:
    """The newest checkpoint under ``folder`` with a readable description, or None.

    Its other files are checked later, when they are loaded."""
    for found in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        try:
            read_meta(found)
        except ValueError:
            continue
        return found
    return None


def require_whole(folder: Path, names: list[str]) -> None:
    """Raise ``ValueError`` if one of these files is missing or damaged.

    Every process calls it, and hashes its share of the files."""
    if (problem := _damage_seen_by_all(folder, names)) is not None:
        raise ValueError(f"{problem}: delete {folder} to go on from the one before")


def _damage(folder: Path, names: list[str]) -> str | None:
    hashes = read_meta(folder)["sha256"]
    for name in names:
        file = folder / name
        try:
            status = file.stat()
            if _digest(file, status.st_size, status.st_mtime_ns, status.st_ino) != hashes.get(name):
                return f"{file} is damaged (its SHA-256 is not the one written)"
        except FileNotFoundError:
            return f"{file} is missing"
        except OSError as error:  # a bad disk; return a problem, since the other processes wait for an answer
            return f"{file} cannot be read ({error})"
    return None


@lru_cache(maxsize=4096)
def _digest(file: Path, size: int, time: int, inode: int) -> str:
    """The SHA-256 of a file. It is kept, since a checkpoint is verified when it is chosen and when it is loaded."""
    return sha256_of(file)


# Going on -------------------------------------------------------------------------------------------------


def clean(folder: Path) -> None:
    """Bring back or remove the unfinished folders that a killed process left under ``folder``.

    Only the process that writes there may call it."""
    for old in folder.glob(".*.old"):
        whole = folder / old.name[1 : -len(".old")]
        if whole.exists():
            shutil.rmtree(old)
        else:
            os.replace(old, whole)
    for partial in folder.glob(".*.partial"):
        if partial.is_dir():
            shutil.rmtree(partial)


def set_aside_damaged(folder: Path) -> None:
    """Rename the damaged checkpoints that are newer than the newest complete one, each with a warning.

    Nothing is deleted. Every process calls it and hashes its share of the files.
    """
    names = [found.name for found in sorted(folder.glob(f"{PREFIX}*"), reverse=True)]
    names = from_main(names)  # as the first process sees them
    for name in names:
        try:
            problem = _damage_seen_by_all(folder / name, sorted(read_meta(folder / name)["sha256"]))
        except ValueError as error:
            problem = str(error).partition(": delete")[0].partition("; delete")[0]
        if problem is None:
            return
        if is_main_process():
            logger.warning("%s; the checkpoint is renamed to %s", problem, _set_aside(folder / name, DAMAGED))
        wait()
    if names:
        logger.warning("%s: no undamaged checkpoint is left; this stage starts from the beginning", folder)


def set_aside_later(start: Path) -> None:
    """Rename the checkpoints of steps after ``start``, if a stage goes on from ``start`` again.

    Otherwise they would count as the newest checkpoints of the continued stage. Nothing is deleted. Only the process
    that writes there may call it."""
    for found in sorted(start.parent.glob(f"{PREFIX}*")):
        if found.name > start.name:
            logger.info("%s is renamed to %s", found, _set_aside(found, LATER))


def _set_aside(folder: Path, mark: str) -> str:
    """Rename a folder, and return its new name."""
    aside, n = folder.with_name(f"{mark}{folder.name}"), 1
    while aside.exists():
        n += 1
        aside = folder.with_name(f"{mark}{folder.name}.{n}")
    os.replace(folder, aside)
    return aside.name


def _damage_seen_by_all(folder: Path, names: list[str]) -> str | None:
    own = _damage(folder, names[get_rank() :: get_world_size()])
    return next((found for found in gather(own) if found is not None), None)
