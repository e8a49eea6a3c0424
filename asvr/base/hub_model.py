"""Models of this library by name: a folder on this machine, or a model on the Hugging Face Hub.

``org/name`` is looked up in this order:

1. the name taken as a path;
2. ``$ASVR_MODEL_ZOO/org/name``;
3. the Hub's cache on this machine, or a download into it.

``org/name@revision`` names a branch, a tag or a commit of the Hub's model; only step 3 has those.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from asvr.base.hub import OWN

MODEL_FILE = "asvr.json"  # a folder of `Pretrained.save_pretrained` has it
TRAINING_FILE, CARD = "training.json", "README.md"
# All that is downloaded of a model: data, no code and no pickle.
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
    """Whether a name is one that a model of the Hub may have, and no path here. Asks no network."""
    return hub_name(name) is not None and not Path(name).exists()


def local_model(name: str | Path) -> Path | None:
    """The folder of a saved model (with ``asvr.json``) on this machine, or None. Asks no network."""
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
    """The folder of a model on this machine, downloaded where it is a name on the Hub. What exists, and what cannot be
    such a name, is returned as a path, whatever it holds.

    revision, token, cache_dir: of the Hub, as `huggingface_hub.snapshot_download` takes them. download: False: only
    what is on this machine. check: is given the folder with ``asvr.json`` before the weights are downloaded.
    Raises ``ValueError`` in one line where the Hub does not have the model, or may not or cannot be asked.
    """
    path, parts = Path(name).expanduser(), hub_name(name)
    if path.exists() or parts is None:
        if revision is not None:
            raise ValueError(
                f"{path}: revision={revision!r} is of a model on the Hub, and this is a path: leave it out"
            )
        return path
    repo, own = parts
    if own is not None and revision is not None:
        raise ValueError(f"{name}: the name has a revision already: leave revision={revision!r} out")
    revision = own or revision
    if (found := _in_zoo(repo, revision)) is not None:
        return found
    # `work_dirs/typo` is a mistake in a path, not a question to the Hub.
    is_path = path.parent.is_dir()
    options = dict(token=token, cache_dir=cache_dir, local_files_only=is_path or not download)
    with telling(repo, revision, options["local_files_only"], f" ({path.parent} is a folder here)" if is_path else ""):
        return _snapshot(repo, revision, check=check, **options)


def results_home(name: str | Path, folder: Path) -> Path:
    """Where results of a model go: its own folder, or a work dir for one that `find_model` found on the Hub, whose
    cache is no place for them. folder: what `find_model` returned."""
    return folder if folder == Path(name).expanduser() else Path("work_dirs") / name


def _in_zoo(repo: str, revision: str | None) -> Path | None:
    zoo = os.environ.get("ASVR_MODEL_ZOO")
    folder = Path(zoo).expanduser() / repo if zoo and revision is None else None
    return folder if folder is not None and (folder / MODEL_FILE).is_file() else None


def _snapshot(repo: str, revision: str | None, *, check: Callable[[Path], None] | None = None, **options) -> Path:
    """The description comes first: it says whether this is a model of ours, before gigabytes are downloaded."""
    from huggingface_hub import hf_hub_download, snapshot_download

    file = Path(hf_hub_download(repo, MODEL_FILE, revision=revision, **options))
    if check is not None:
        check(file.parent)
    commit = file.parent.name
    return Path(snapshot_download(repo, revision=commit, allow_patterns=FILES, **options))


@contextmanager
def telling(repo: str, revision: str | None = None, local: bool = False, why_local: str = "") -> Iterator[None]:
    """Errors of the Hub as a ``ValueError`` in one line that says what to do. local: the Hub may not be asked."""
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
            f"{at} is not a model of this library, it has no {MODEL_FILE}: for a LLaVA model, download it with "
            f"`hf download {repo}` and convert it with `tools/convert.py import`"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ValueError(_not_here(repo, revision, local, why_local)) from error
    except errors.LocalTokenNotFoundError as error:
        raise ValueError(f"{repo}: you are not logged in to the Hub: use `hf auth login`, or set HF_TOKEN") from error
    except errors.HFValidationError as error:
        raise ValueError(f"{repo!r} is no name of a model on the Hub: expected org/name ({error})") from error
    except errors.HfHubHTTPError as error:
        raise ValueError(_answered(repo, error)) from error
    except errors.HTTPError as error:  # of the HTTP client: no connection
        raise ValueError(f"{repo}: the Hub cannot be reached ({type(error).__name__}: {error})") from error


def _not_here(repo: str, revision: str | None, local: bool, why_local: str) -> str:
    from huggingface_hub import is_offline_mode

    fetch = f"hf download {repo}{f' --revision {revision}' if revision else ''}"
    told = f"{repo}{f'@{revision}' if revision else ''}: there is no such folder, nor such a model in the Hub's cache"
    if local:
        return f"{told}, and the Hub is not asked{why_local}: run `{fetch}` if you mean a model on the Hub"
    if is_offline_mode():
        return f"{told}, and the Hub is not asked (HF_HUB_OFFLINE is set): unset it, or run `{fetch}` with a network"
    return f"{told}, and the Hub cannot be reached: run `{fetch}` with a network"


def _answered(repo: str, error) -> str:
    status = error.response.status_code
    words = error.server_message or str(error).splitlines()[0]
    if status in (401, 403):
        return f"{repo}: the Hub refuses ({words}): log in with a token that may do this (`hf auth login`, HF_TOKEN)"
    return f"{repo}: the Hub answers with an error: {' '.join(words.split())}"
