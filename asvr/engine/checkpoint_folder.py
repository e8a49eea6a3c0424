"""The folders of checkpoints: written whole or not at all, told whole from damaged, kept in order.

A folder is written as ``.step_N.partial`` and renamed when complete. A step that is saved again moves out of the way as
``.step_N.old`` first. So whenever a process is killed, ``step_N`` is whole, or ``.step_N.old`` is and `clean` brings it
back. ``checkpoint.json`` has the SHA-256 of every other file.
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
    """A new empty folder that `finish` renames to ``folder``."""
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def finish(folder: Path, meta: dict, sha256: dict[str, str]) -> None:
    """Describe what was written and give it its name. sha256: of each file, by its name in the folder."""
    partial, old = _partial(folder), folder.with_name(f".{folder.name}.old")
    (partial / META).write_text(json.dumps(dict(meta, sha256=sha256), indent=1), encoding="utf-8")
    flush(partial / META)
    for place in (partial, *(path for path in partial.iterdir() if path.is_dir())):
        flush(place)
    if folder.exists():  # a step that is saved again; moved away first, so that no half of it keeps the name
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(partial, folder)
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def abandon(folder: Path) -> None:
    """Remove what was written since `begin`."""
    shutil.rmtree(_partial(folder), ignore_errors=True)


def require_room(folder: Path, needed: int) -> None:
    """Raise ``ValueError`` where ``needed`` bytes are more than what is free for ``folder``."""
    if needed > free_bytes(folder):
        raise ValueError(no_room(folder, needed, "the disk is too small"))


def no_room(folder: Path, needed: int, why: str) -> str:
    return (
        f"{folder} cannot be written: {why}; it needs {in_bytes(needed)}, {in_bytes(free_bytes(folder))} are free. The "
        f"last good checkpoint is {newest(folder.parent)}. Make room and run the same command again"
    )


def told(folder: Path, needed: int, error: Exception) -> Exception:
    """``error``, or a ``ValueError`` that says what there was no room for."""
    full = full_disk(error)
    return error if full is None else ValueError(no_room(folder, needed, full.strerror))


def prune(folder: Path, keep: int) -> None:
    for old in sorted(folder.glob(f"{PREFIX}*"))[:-keep]:
        gone = _partial(old)  # renamed first: a kill leaves no half checkpoint under the name of a whole one
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(old, gone)
        shutil.rmtree(gone)


def flush(path: Path) -> None:
    """To the disk: a file, or a folder with the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


# Reading --------------------------------------------------------------------------------------------------


def read_meta(folder: Path) -> dict:
    """What ``checkpoint.json`` says; raises ``ValueError`` where it is missing or damaged."""
    file = folder / META
    if not file.is_file():
        raise ValueError(f"{folder} is no checkpoint: it has no {META}; delete it")
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(meta, dict) or not isinstance(meta.get("sha256"), dict):
            raise ValueError("it names no files")
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): delete {folder} to go on from the one before") from error
    return meta


def newest(folder: Path) -> Path | None:
    """The newest checkpoint under ``folder`` with a readable description, or None. Whether its other files are whole
    is seen when they are loaded."""
    for found in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        try:
            read_meta(found)
        except ValueError:
            continue
        return found
    return None


def require_whole(folder: Path, names: list[str]) -> None:
    """Raise ``ValueError`` where one of these files is missing or damaged. Every process calls it, and hashes its share
    of them."""
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
        except OSError as error:  # a bad disk: the other processes wait for an answer
            return f"{file} cannot be read ({error})"
    return None


@lru_cache(maxsize=4096)
def _digest(file: Path, size: int, time: int, inode: int) -> str:
    """Read once, though a checkpoint is verified when it is chosen and again when it is loaded."""
    return sha256_of(file)


# Going on -------------------------------------------------------------------------------------------------


def clean(folder: Path) -> None:
    """Bring back or remove what a kill left half done under ``folder``. Only for the process that writes there."""
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
    """Rename the newest checkpoints under ``folder`` up to the first whole one, if they are damaged, and warn of each.

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
            logger.warning("%s: set aside as %s", problem, _set_aside(folder / name, DAMAGED))
        wait()
    if names:
        logger.warning("%s: no whole checkpoint is left; this stage begins anew", folder)


def set_aside_later(start: Path) -> None:
    """Rename the checkpoints behind ``start``, from which their stage goes on once more: they would be taken for the
    newest of what begins there. Nothing is deleted. Only for the process that writes there."""
    for found in sorted(start.parent.glob(f"{PREFIX}*")):
        if found.name > start.name:
            logger.info("%s: set aside as %s", found, _set_aside(found, LATER))


def _set_aside(folder: Path, mark: str) -> str:
    """The new name."""
    aside, n = folder.with_name(f"{mark}{folder.name}"), 1
    while aside.exists():
        n += 1
        aside = folder.with_name(f"{mark}{folder.name}.{n}")
    os.replace(folder, aside)
    return aside.name


def _damage_seen_by_all(folder: Path, names: list[str]) -> str | None:
    own = _damage(folder, names[get_rank() :: get_world_size()])
    return next((found for found in gather(own) if found is not None), None)
