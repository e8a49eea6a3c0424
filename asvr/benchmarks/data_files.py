"""Whether the data sets of lmms-eval's tasks are on this machine, and how to fetch those that are not."""

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from asvr.base.files import sha256_of

BUILDERS = ("arrow", "csv", "imagefolder", "json", "pandas", "parquet", "text", "webdataset")  # of files that are named
NOT_DATA = ("README.md", ".gitattributes")
DEFAULT = "default"  # how the library datasets calls the subset of a data set that names none


@dataclass(frozen=True)
class DataSet:
    """What a task reads. name: a data set of the Hugging Face Hub, a folder, or a kind of file. subset: of it, or None
    for its only one. files: where they are named, or patterns (``data/*.jsonl``), from ``folder`` on; without files,
    all of that folder are read."""

    task: str
    name: str
    subset: str | None = None
    files: tuple[str, ...] = ()
    folder: str = ""

    def absent(self) -> str | None:
        """What is missing and how to get it, or None where the data are here."""
        if self.name in BUILDERS:
            gone = [file for file in self.files if not _is_remote(file) and not _matching(self.folder, file)]
            return f"- {self.task}: there is no {', '.join(gone)}" if gone else None
        if not _on_hub(self.name):
            return None if Path(self.name).expanduser().exists() else f"- {self.task}: there is no {self.name}"
        if self.is_prepared() or hub_folder(self.name):
            return None
        return f"- {self.task}: {self.name}\n    fetch it:  hf download --repo-type dataset {self.name}"

    def state(self) -> list[str]:
        """What is here of it, by which it is known when that has changed: SHA-256 of files that are named, names, sizes
        and times of those in a folder, the revisions of a data set of the Hub."""
        if self.name in BUILDERS and self.files:
            here = [name for name in self.files if not _is_remote(name)]
            return [sha256_of(file) for name in here for file in _matching(self.folder, name)]
        if self.name in BUILDERS:
            return _listing(Path(self.folder).expanduser()) if self.folder else []
        if not _on_hub(self.name):
            return _listing(Path(self.name).expanduser())
        main = _main(self.name)
        fetched = [main.read_text(encoding="utf-8").strip()] if main.is_file() else []
        return fetched + ["/".join(folder.parts[-3:]) for folder in self.prepared()]

    def is_prepared(self) -> bool:
        """Whether the library datasets has loaded it here before and needs no network for it."""
        return bool(self.prepared())

    def prepared(self) -> list[Path]:
        """The folders, one a revision, that the library datasets keeps it in. Without a name it is the subset
        ``default``, or the only one there is."""
        owner, _, name = self.name.rpartition("/")
        folder = datasets_cache() / (f"{owner}___{_snake(name)}" if owner else _snake(name))
        whole = [file.parent for file in folder.glob(f"{self.subset or '*'}/*/*/dataset_info.json")]
        whole = [found for found in whole if not found.name.endswith(".incomplete")]  # a load that was killed left it
        subsets = {found.parts[-3] for found in whole}
        own = self.subset or (DEFAULT if DEFAULT in subsets or len(subsets) != 1 else subsets.pop())
        return sorted(found for found in whole if found.parts[-3] == own)


class MissingData(ValueError):
    """Data sets that are not on this machine: of which tasks, and the commands that fetch them."""

    def __init__(self, absent: dict[str, str], present: list[str]):
        self.tasks = list(absent)
        count = "the data of 1 task are missing" if len(absent) == 1 else f"the data of {len(absent)} tasks are missing"
        others = f"--skip-missing runs those whose data are here: {', '.join(present)}." if present else ""
        lines = [
            f"{count}:",
            *absent.values(),
            f"Looked at {hub_cache()} and {datasets_cache()}. On a machine without network, run the commands "
            "elsewhere, copy the cache and set HF_HOME to it. Or set ASVR_DOWNLOAD=1 to have lmms-eval fetch them.",
        ]
        super().__init__("\n".join(lines + ([others] if others else [])))


def data_set(task: str, config: dict) -> DataSet | None:
    """What a task of this configuration (lmms-eval's yaml as a dict) reads; None where it does not say."""
    name, kwargs = config.get("dataset_path"), config.get("dataset_kwargs") or {}
    if not isinstance(name, str):
        return None
    files = tuple(_flat(kwargs.get("data_files")))
    return DataSet(task, name, config.get("dataset_name"), files, str(kwargs.get("data_dir") or ""))


def hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def datasets_cache() -> Path:
    """Where lmms-eval has data sets prepared."""
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    named = os.environ.get("LMMS_EVAL_DATASETS_CACHE") or os.environ.get("HF_DATASETS_CACHE")
    return Path(os.path.expandvars(named or f"{home}/datasets")).expanduser()


def hub_folder(name: str) -> Path | None:
    """The folder that ``hf download`` has made of a data set, if it is here."""
    if not _on_hub(name):
        return None
    main = _main(name)
    if not main.is_file():
        return None
    snapshot = main.parents[1] / "snapshots" / main.read_text(encoding="utf-8").strip()
    has_data = any(file.is_file() and file.name not in NOT_DATA for file in snapshot.rglob("*"))
    return snapshot if has_data else None


def found_folder(name: str, subset: str | None) -> Path | None:
    """The folder to read a data set of the Hub from, where only ``hf download`` has been at it. Without a subset's
    name it is read too where the library datasets has another subset than ``default``, which may be any."""
    return None if DataSet("", name, subset or DEFAULT).is_prepared() else hub_folder(name)


def _on_hub(name: str) -> bool:
    return re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", name) is not None and not Path(name).exists()


def _main(name: str) -> Path:
    """The file in which ``hf download`` notes the commit that it fetched."""
    return hub_cache() / f"datasets--{name.replace('/', '--')}" / "refs" / "main"


def _is_remote(name: str) -> bool:
    return "://" in name


def _matching(folder: str, name: str) -> list[Path]:
    path = Path(folder).expanduser() / name
    found = [str(path)] if path.is_file() else sorted(glob.glob(str(path), recursive=True))
    return [Path(file) for file in found if Path(file).is_file()]


def _listing(folder: Path) -> list[str]:
    """Of all files, but those in which the library datasets keeps what a task made of them, which a run adds. A single
    file is one of its own."""
    names = sorted(glob.glob("**", root_dir=folder, recursive=True)) if folder.is_dir() else [""]
    files = [folder / name for name in names if not re.search(r"(^|/)cache-\w+\.arrow$", name)]
    known = [(file, file.stat()) for file in files if file.is_file()]
    return [f"{file.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}" for file, stat in known]


def _flat(value) -> list[str]:
    if isinstance(value, dict | list | tuple):
        return [name for item in (value.values() if isinstance(value, dict) else value) for name in _flat(item)]
    return [] if value is None else [str(value)]


def _snake(name: str) -> str:
    """As datasets writes a name: ``DocVQA`` is ``doc_vqa``."""
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z\d])([A-Z])", r"\1_\2", name).lower()
