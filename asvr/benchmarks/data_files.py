"""Checks whether the data sets of lmms-eval's tasks are on this machine, and says how to fetch missing ones."""

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from asvr.base.files import sha256_of

BUILDERS = ("arrow", "csv", "imagefolder", "json", "pandas", "parquet", "text", "webdataset")  # for named files
NOT_DATA = ("README.md", ".gitattributes")
DEFAULT = "default"  # the name that the library datasets gives to an unnamed subset


@dataclass(frozen=True)
class DataSet:
    """The data set of a task.

    name: a data set of the Hugging Face Hub, a folder, or a kind of file. subset: None for the only one. files: names
    or patterns of files in ``folder`` (``data/*.jsonl``); without them all files of the folder are read.
    """

    task: str
    name: str
    subset: str | None = None
    files: tuple[str, ...] = ()
    folder: str = ""

    def absent(self) -> str | None:
        """What is missing and how to get it. None if the data are on this machine."""
        if self.name in BUILDERS:
            gone = [file for file in self.files if not _is_remote(file) and not _matching(self.folder, file)]
            return f"- {self.task}: there is no {', '.join(gone)}" if gone else None
        if not _on_hub(self.name):
            return None if Path(self.name).expanduser().exists() else f"- {self.task}: there is no {self.name}"
        if self.is_prepared() or hub_folder(self.name):
            return None
        return f"- {self.task}: {self.name}\n    fetch it:  hf download --repo-type dataset {self.name}"

    def state(self) -> list[str]:
        """The state of the data on this machine. It differs after a change.

        It has the SHA-256 of named files, the names, sizes and times of files in a folder, and the revisions of a data
        set of the Hub.
        """
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
        """Whether the library datasets has loaded it before, and so needs no network."""
        return bool(self.prepared())

    def prepared(self) -> list[Path]:
        """The folders in which the library datasets keeps it, one for each revision. If no subset is named, it is
        ``default`` or the only one."""
        owner, _, name = self.name.rpartition("/")
        folder = datasets_cache() / (f"{owner}___{_snake(name)}" if owner else _snake(name))
        whole = [file.parent for file in folder.glob(f"{self.subset or '*'}/*/*/dataset_info.json")]
        whole = [found for found in whole if not found.name.endswith(".incomplete")]  # a load that was killed left it
        subsets = {found.parts[-3] for found in whole}
        own = self.subset or (DEFAULT if DEFAULT in subsets or len(subsets) != 1 else subsets.pop())
        return sorted(found for found in whole if found.parts[-3] == own)


class MissingData(ValueError):
    """Data sets of tasks are not on this machine. The message has the commands that fetch them."""

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
    """The data set of a task. config: lmms-eval's yaml as a dict. None if it names no data set."""
    name, kwargs = config.get("dataset_path"), config.get("dataset_kwargs") or {}
    if not isinstance(name, str):
        return None
    files = tuple(_flat(kwargs.get("data_files")))
    return DataSet(task, name, config.get("dataset_name"), files, str(kwargs.get("data_dir") or ""))


def hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def datasets_cache() -> Path:
    """The folder in which lmms-eval keeps prepared data sets."""
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    named = os.environ.get("LMMS_EVAL_DATASETS_CACHE") or os.environ.get("HF_DATASETS_CACHE")
    return Path(os.path.expandvars(named or f"{home}/datasets")).expanduser()


def hub_folder(name: str) -> Path | None:
    """The folder in which ``hf download`` has put a data set, or None."""
    if not _on_hub(name):
        return None
    main = _main(name)
    if not main.is_file():
        return None
    snapshot = main.parents[1] / "snapshots" / main.read_text(encoding="utf-8").strip()
    has_data = any(file.is_file() and file.name not in NOT_DATA for file in snapshot.rglob("*"))
    return snapshot if has_data else None


def found_folder(name: str, subset: str | None) -> Path | None:
    """The folder of ``hf download`` for a data set that the library datasets has not prepared, else None.

    If no subset is named, a prepared subset counts only if it is ``default``.
    """
    return None if DataSet("", name, subset or DEFAULT).is_prepared() else hub_folder(name)


def _on_hub(name: str) -> bool:
    return re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", name) is not None and not Path(name).exists()


def _main(name: str) -> Path:
    """The file in which ``hf download`` writes the commit that it has fetched."""
    return hub_cache() / f"datasets--{name.replace('/', '--')}" / "refs" / "main"


def _is_remote(name: str) -> bool:
    return "://" in name


def _matching(folder: str, name: str) -> list[Path]:
    path = Path(folder).expanduser() / name
    found = [str(path)] if path.is_file() else sorted(glob.glob(str(path), recursive=True))
    return [Path(file) for file in found if Path(file).is_file()]


def _listing(folder: Path) -> list[str]:
    """Names, sizes and times of all files of a folder, or of a single file. Caches of the library datasets are left
    out, because a run adds them."""
    names = sorted(glob.glob("**", root_dir=folder, recursive=True)) if folder.is_dir() else [""]
    files = [folder / name for name in names if not re.search(r"(^|/)cache-\w+\.arrow$", name)]
    known = [(file, file.stat()) for file in files if file.is_file()]
    return [f"{file.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}" for file, stat in known]


def _flat(value) -> list[str]:
    if isinstance(value, dict | list | tuple):
        return [name for item in (value.values() if isinstance(value, dict) else value) for name in _flat(item)]
    return [] if value is None else [str(value)]


def _snake(name: str) -> str:
    """The form in which datasets writes a name: ``DocVQA`` becomes ``doc_vqa``."""
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z\d])([A-Z])", r"\1_\2", name).lower()
