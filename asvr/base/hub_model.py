"""Finding saved models of this library: a folder on this machine, or a model on the Hugging Face Hub.

``org/name`` is looked up in this order:

1. the name taken as a path;
2. ``$ASVR_MODEL_ZOO/org/name``;
3. the Hub's cache on this machine, or a download into it.

``org/name@revision`` names a branch, a tag or a commit of a model on the Hub; it only uses step 3.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from asvr.base.hub import OWN

MODEL_FILE = "asvr.json"  # in every folder of `Pretrained.save_pretrained`
TRAINING_FILE, CARD = "training.json", "README.md"
# The files of a model that are downloaded: data, no code and no pickle.
FILES = [
    *(MODEL_FILE, TRAINING_FILE, CARD, "model*.safetensors", "model.safetensors.index.json"),
    *(f"text_tokenizer/*.{suffix}" for suffix in ("json", "model", "txt", "jinja")),
]
_NAME = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")


def hub_name(name: str | Path) -> tuple[str, str | None] | None:
    """``org/name@revision`` as (name, revision); None where ``name`` cannot be a model's name on the Hub."""
    found = _NAME.fullmatch(str(name))
    return None if found is None or str(name).startswith(OWN) else (found[1], found[2])


def may_be_on_hub(name: str) -> bool:
    """Whether a name may be that of a model on the Hub, and is not a path here. It uses no network."""
    return hub_name(name) is not None and not Path(name).exists()


def local_model(name: str | Path) -> Path | None:
    """The folder of a saved model (with ``asvr.json``) on this machine, or None. It uses no network."""
    if (Path(name) / MODEL_FILE).is_file():
        return Path(name)
    if Path(name).exists() or (parts := hub_name(name)) is None:
        return None
    if (found := _in_zoo(*parts)) is not None:
        return found
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return _snapshot(*parts, local_files_only=True)
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError):  # the last one: no name of the Hub after all
        return None


def find_model(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    download: bool = True,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """The local folder of a model. A name on the Hub is downloaded.

    An existing path, or a name that cannot be on the Hub, is returned as a path without a check of its content.

    revision, token, cache_dir: as in `huggingface_hub.snapshot_download`. download: False uses only models on this
    machine. check: a function that gets the folder with ``asvr.json`` before the weights are downloaded. Raises
    ``ValueError`` in one line if the Hub does not have the model, or cannot or may not be asked.
    """
    path, parts = Path(name).expanduser(), hub_name(name)
    if path.exists() or parts is None:
        if revision is not None:
            raise ValueError(
                f"{path}: revision={revision!r} is only for models on the Hub, and this is a path: leave it out"
            )
        return path
    repo, own = parts
    if own is not None and revision is not None:
        raise ValueError(f"{name}: the name already has a revision: leave out revision={revision!r}")
    revision = own or revision
    if (found := _in_zoo(repo, revision)) is not None:
        return found
    # `work_dirs/typo` is a misspelt path. The Hub is not asked for it.
    is_path = path.parent.is_dir()
    options = dict(token=token, cache_dir=cache_dir, local_files_only=is_path or not download)
    with errors_in_words(
        repo, revision, options["local_files_only"], f" ({path.parent} is a folder here)" if is_path else ""
    ):
        return _snapshot(repo, revision, check=check, **options)


def results_home(name: str | Path, folder: Path) -> Path:
    """The folder for results of a model: its own folder, or a work dir for a model from the Hub, to keep the cache
    clean. folder: the result of `find_model`."""
    return folder if folder == Path(name).expanduser() else Path("work_dirs") / name


def _in_zoo(repo: str, revision: str | None) -> Path | None:
    zoo = os.environ.get("ASVR_MODEL_ZOO")
    folder = Path(zoo).expanduser() / repo if zoo and revision is None else None
    return folder if folder is not None and (folder / MODEL_FILE).is_file() else None


def _snapshot(repo: str, revision: str | None, *, check: Callable[[Path], None] | None = None, **options) -> Path:
    """Download a model. ``asvr.json`` comes first: it shows whether this is a model of this library."""
    from huggingface_hub import hf_hub_download, snapshot_download

    file = Path(hf_hub_download(repo, MODEL_FILE, revision=revision, **options))
    if check is not None:
        check(file.parent)
    commit = file.parent.name
    return Path(snapshot_download(repo, revision=commit, allow_patterns=FILES, **options))


@contextmanager
def errors_in_words(repo: str, revision: str | None = None, local: bool = False, why_local: str = "") -> Iterator[None]:
    """Turn errors of the Hub into a one-line ``ValueError`` that says what to do. local: the Hub may not be asked."""
    from huggingface_hub import errors

    at = f"{repo}@{revision}" if revision else repo
    try:
        yield
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{repo}: this model is gated: ask for access on its page of the Hub, then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{repo}: there is no such folder here and no such model on the Hub, or it is private: log in with "
            "`hf auth login`, set HF_TOKEN, or give token=..."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{repo}: the Hub's model has no revision {revision!r}") from error
    except errors.RemoteEntryNotFoundError as error:
        raise ValueError(
            f"{at} is not a model of this library, it has no {MODEL_FILE}: for a LLaVA-1.5 model, download it with "
            f"`hf download {repo}` and convert it with `asvr convert import`"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ValueError(_not_here(repo, revision, local, why_local)) from error
    except errors.LocalTokenNotFoundError as error:
        raise ValueError(f"{repo}: you are not logged in to the Hub: use `hf auth login`, or set HF_TOKEN") from error
    except errors.HFValidationError as error:
        raise ValueError(f"{repo!r} is not the name of a model on the Hub: expected org/name ({error})") from error
    except errors.HfHubHTTPError as error:
        raise ValueError(_answered(repo, error)) from error
    except errors.HTTPError as error:  # of the HTTP client: no connection
        raise ValueError(f"{repo}: the Hub cannot be reached ({type(error).__name__}: {error})") from error


def _not_here(repo: str, revision: str | None, local: bool, why_local: str) -> str:
    from huggingface_hub import is_offline_mode

    fetch = f"hf download {repo}{f' --revision {revision}' if revision else ''}"
    absent = f"{repo}{f'@{revision}' if revision else ''}: there is no such folder and no such model in the Hub's cache"
    if local:
        return f"{absent}, and the Hub is not asked{why_local}: run `{fetch}` if you mean a model on the Hub"
    if is_offline_mode():
        return f"{absent}, and the Hub is not asked (HF_HUB_OFFLINE is set): unset it, or run `{fetch}` with a network"
    return f"{absent}, and the Hub cannot be reached: run `{fetch}` with a network"


def _answered(repo: str, error) -> str:
    status = error.response.status_code
    words = error.server_message or str(error).splitlines()[0]
    if status in (401, 403):
        return f"{repo}: the Hub refuses ({words}): log in with a token that may do this (`hf auth login`, HF_TOKEN)"
    return f"{repo}: the Hub answered with an error: {' '.join(words.split())}"
