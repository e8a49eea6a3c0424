"""Folders that are written whole or not at all, and files told by their content."""

import hashlib
import os
import pickle
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require_new(folder: Path) -> None:
    """Raise ``ValueError`` where ``folder`` exists or cannot be made, before the work that is to fill it."""
    if os.path.lexists(folder):
        raise ValueError(f"{folder} exists: give a new folder")
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{folder}: cannot be made, {parent} is no folder that may be written to")


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its place when the block ends, and is removed where that fails.

    Raises ``ValueError`` where ``folder`` exists or cannot be written.
    """
    folder = Path(folder).absolute()
    require_new(folder)
    with _beside(folder) as partial:
        yield partial
        require_new(folder)  # made by another meanwhile
        os.replace(partial, folder)


@contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """As `new_folder`, but what stands there is replaced, and kept where that fails."""
    folder = Path(folder).absolute()
    with _beside(folder) as partial:
        yield partial
        old = folder.with_name(f".{folder.name}.old.{uuid.uuid4().hex[:8]}")
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(partial, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    # A name of its own: another process may be writing the same folder.
    partial = folder.with_name(f".{folder.name}.partial.{uuid.uuid4().hex[:8]}")
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
    """What to tell of a file, or a folder of them, that ``torch.load(weights_only=True)`` does not load."""
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    return ValueError(
        f"{file} holds more than tensors and plain values{f' ({wanted[1]})' if wanted else ''}, which could run code "
        "and is not loaded. Save its state_dict alone, best as safetensors"
    )
