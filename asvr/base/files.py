"""Atomic writes of files and folders, and hashes of files."""

import glob
import hashlib
import os
import pickle
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require_new(folder: Path) -> None:
    """Raise ``ValueError`` if ``folder`` exists or cannot be made, before the work that fills it."""
    if os.path.lexists(folder):
        raise ValueError(f"{folder} exists: give a new folder")
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{folder}: cannot be made, {parent} is not a folder that may be written to")


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` when the block ends, and is removed if the block fails.

    Raises ``ValueError`` if ``folder`` exists or cannot be written.
    """
    folder = Path(folder).absolute()
    require_new(folder)
    with _beside(folder) as partial:
        yield partial
        require_new(folder)  # another process may have made it
        os.replace(partial, folder)


@contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """Like `new_folder`, but an existing folder is replaced. It stays if the block fails."""
    folder = Path(folder).absolute()
    with _beside(folder) as partial:
        yield partial
        old = partial_of(folder)
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(partial, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


def replace_text(file: Path, text: str) -> None:
    """Write a file atomically: it has the old text or the new one, even after a crash."""
    partial = partial_of(file)
    with open(partial, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)


def partial_of(path: Path) -> Path:
    """A hidden temporary path beside ``path``. It is new at each call, since other processes may write the same file.

    Temporary files of dead processes of this machine are removed."""
    own = f".{path.name}.{_machine()}."
    for left in path.parent.glob(f"{glob.escape(own)}*.partial"):
        if not _alive(left.name.removeprefix(own).split(".")[0]):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f"{own}{os.getpid()}.{uuid.uuid4().hex[:8]}.partial")


def _machine() -> str:
    """The name of the machine or container, in which a process number is unique."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}-{namespace.stat().st_ino if namespace.exists() else 0}"


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of another user
        return True
    return True


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    partial = partial_of(folder)
    try:
        partial.mkdir(parents=True)
        yield partial
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sha256_of(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def unsafe_pickle(file: str | Path, error: pickle.UnpicklingError) -> ValueError:
    """The error for a file or folder that ``torch.load(weights_only=True)`` does not load."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return ValueError(
        f"{file} holds more than tensors and plain values{f' ({found[1]})' if found else ''}, which could run code "
        "and is not loaded. Save its state_dict alone, best as safetensors"
    )
