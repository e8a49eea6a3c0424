"""Upload a saved folder to the Hugging Face Hub."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from asvr.base.hub_model import CARD, MODEL_FILE, errors_in_words, hub_name
from asvr.base.version import asvr_version
from asvr.sharing.card import License, card_of, is_generated, stated_terms

logger = logging.getLogger("asvr")

# Folders that commands of this library write into a saved model. They hold answers to questions that may be private.
OWN_RESULTS = ("evaluation", "benchmarks")
# Files of an earlier model on the Hub. Old shards would be read together with the new ones.
REPLACED = ["model*.safetensors", "model.safetensors.index.json", "text_tokenizer/*"]


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    terms: License | None = None,
    overwrite_card: bool = False,
) -> CommitInfo:
    """Upload a folder of `save_pretrained` or of ``convert export`` as a model of the Hub.

    The folder is not changed. Hidden files and results of evaluations in it are not uploaded. See
    `asvr.pretrained.Pretrained.push_to_hub` for the arguments and for model cards that are kept. Raises ``ValueError``
    in one line if the folder is no model, or if the Hub refuses.
    """
    folder = Path(folder)
    if not (folder / MODEL_FILE).is_file() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: neither a saved model ({MODEL_FILE}) nor an exported one (config.json)")
    if create_pr and revision is not None:
        raise ValueError(f"create_pr=True opens a pull request to the main branch: leave revision={revision!r} out")
    if "@" in repo_id or (hub_name(repo_id) is None and "/" in repo_id):
        raise ValueError(
            f"{repo_id!r} is not the name of a model on the Hub: expected org/name; a branch is revision=..."
        )
    _card(folder, repo_id, terms)  # raises its errors before anything is created on the Hub
    api = HfApi(token=token, library_name="asvr", library_version=asvr_version())
    with errors_in_words(repo_id), _logged_in(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    with _staged(folder, repo_id, terms) as staged:
        ignored = [] if overwrite_card else _kept_card(api, staged, repo_id, revision)
        with errors_in_words(repo_id, revision), _taken(repo_id):
            info = api.upload_folder(
                repo_id=repo_id,
                folder_path=staged,
                commit_message=commit_message or "Upload a model of asvr",
                revision=revision,
                create_pr=create_pr,
                ignore_patterns=ignored,
                delete_patterns=REPLACED,
            )
    return info


@contextmanager
def _logged_in(repo_id: str) -> Iterator[None]:
    """Turn an upload without a network, and the Hub's "not found", into a message on what to do. The Hub says "not
    found" to everyone who is not logged in."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ValueError(f"{repo_id}: nothing is uploaded, since HF_HUB_OFFLINE is set: unset it") from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{repo_id}: the Hub does not let you make or write this model: log in with `hf auth login`, or set "
            "HF_TOKEN to a token that may write"
        ) from error


@contextmanager
def _taken(repo_id: str) -> Iterator[None]:
    """Turn a refusal of the card's metadata into one line. The client asks the Hub before it uploads anything."""
    try:
        yield
    except HfHubHTTPError:  # some are a ValueError too
        raise
    except ValueError as error:
        raise ValueError(f"{repo_id}: the Hub does not take this: {' '.join(str(error).split())}") from error


@contextmanager
def _staged(folder: Path, repo_id: str, terms: License | None) -> Iterator[Path]:
    """A temporary folder with links to the files that are uploaded, and with the model card."""
    with tempfile.TemporaryDirectory() as place:
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder)
            hidden = any(part.startswith(".") for part in name.parts)
            if file.is_file() and not hidden and name.parts[0] not in OWN_RESULTS and str(name) != CARD:
                link = Path(place) / name
                link.parent.mkdir(parents=True, exist_ok=True)
                os.symlink(file.resolve(), link)
        if (card := _card(folder, repo_id, terms)) is not None:
            (Path(place) / CARD).write_text(card, encoding="utf-8")
        yield Path(place)


def _card(folder: Path, repo_id: str, terms: License | None) -> str | None:
    """The text of the card. A user's own card stays as it is. A card of ours is written again with the Hub's name."""
    file = folder / CARD
    text = file.read_text(encoding="utf-8") if file.is_file() else None
    if (folder / MODEL_FILE).is_file() and (text is None or is_generated(text)):
        return card_of(folder, terms=terms, repo_id=repo_id)
    if terms is None or terms.license is None:
        return text
    if (stated := stated_terms(folder).license) not in (None, terms.license):
        raise ValueError(
            f"{file} states license {stated!r}, and license={terms.license!r} was given: change one of them"
        )
    card = ModelCard(text or "", ignore_metadata_errors=True)
    for key, value in asdict(terms).items():
        card.data[key] = value
    return str(card)


def _kept_card(api: HfApi, staged: Path, repo_id: str, revision: str | None) -> list[str]:
    """[CARD] if the Hub has a card that a person wrote, and the new one was written by this library; else []."""
    if not (staged / CARD).is_file() or not is_generated((staged / CARD).read_text(encoding="utf-8")):
        return []
    with tempfile.TemporaryDirectory() as place, errors_in_words(repo_id, revision):
        try:
            there = Path(api.hf_hub_download(repo_id, CARD, revision=revision, local_dir=place))
        except EntryNotFoundError:
            return []
        if is_generated(there.read_text(encoding="utf-8")):
            return []
    logger.warning("%s: its %s on the Hub was written by hand and is kept; overwrite_card replaces it", repo_id, CARD)
    return [CARD]
