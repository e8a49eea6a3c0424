"""The wheels of ``benchmarks/gpu.py``, some of them in parts."""

import re
import shutil
import zipfile
from pathlib import Path

PART = re.compile(r"(.+\.whl)\.([a-z]{2,})")  # as of `split -b 60m NAME.whl NAME.whl.`


def find_wheels(folder: Path, joined: Path) -> list[Path]:
    """The wheels in a folder and in the folders in it. Those in parts are joined in the folder ``joined``.

    Raises ``ValueError`` if there is no wheel, or if parts make none.
    """
    parts: dict[str, list[Path]] = {}
    for file in folder.resolve().rglob("*.whl.*"):
        if match := PART.fullmatch(file.name):
            parts.setdefault(match[1], []).append(file)
    joined.mkdir(parents=True, exist_ok=True)
    made = [_join(name, sorted(own, key=lambda part: part.name), joined) for name, own in sorted(parts.items())]
    found = sorted(folder.resolve().rglob("*.whl")) + made
    if not found:
        raise ValueError(f"--wheels {folder}: there are no wheels")
    return found


def _join(name: str, parts: list[Path], folder: Path) -> Path:
    file = folder / name
    with open(file, "wb") as out:
        for part in parts:
            with open(part, "rb") as stream:
                shutil.copyfileobj(stream, out)
    if not zipfile.is_zipfile(file):
        names = ", ".join(part.name for part in parts)
        raise ValueError(f"--wheels: {names}: together they are no wheel; expected all parts of {name}")
    return file
