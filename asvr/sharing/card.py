"""The model card of a saved folder: ``README.md`` with the metadata that the Hugging Face Hub reads.

Everything in it comes from the folder: ``asvr.json``, the shapes in its weights, and ``training.json`` if there is one.
A licence is never guessed. It is the one that the user gave, or "not stated".
"""

import hashlib
import json
import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from asvr.base.hub_model import CARD, MODEL_FILE, TRAINING_FILE
from asvr.sharing import card_text
from asvr.sharing.card_text import Counts, named, wilson

logger = logging.getLogger("asvr")

TAGS = ["asvr", "vision-language-model", "visual-reconstruction"]
_MARK = re.compile(r"\n<!-- Written by asvr; ([0-9a-f]{64}) -->\n*\Z")


@dataclass(frozen=True, kw_only=True)
class License:
    """The licence in a model card's metadata.

    It is a name of the Hub (``apache-2.0``, ``mit``), or ``other`` with a name and a link of its own. None: not stated.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None

    def __post_init__(self):
        if self.license != "other" and (self.license_name or self.license_link):
            raise ValueError(
                f"license={self.license!r}: license_name and license_link go with license='other'; set it, or "
                "leave them out"
            )


def card_of(folder: Path, *, terms: License | None = None, name: str | None = None, repo_id: str | None = None) -> str:
    """The text of the card.

    terms: the licence; None: the one in the folder's own card. name: the title; None: the folder's name. repo_id: the
    name on the Hub, which the card uses where it explains how to load the model. Raises ``ValueError`` if the folder's
    ``asvr.json`` cannot be read.
    """
    description, facts = _read(folder / MODEL_FILE), read_training(folder) or {}
    if description is None:
        raise ValueError(f"{folder / MODEL_FILE}: cannot be read, or is no JSON object")
    terms = stated_terms(folder) if terms is None else terms
    name = (repo_id or name or folder.name).rpartition("/")[2]
    body = card_text.body(description, facts, counted(folder), asdict(terms), name=name, load=repo_id)
    data = ModelCardData(
        library_name="asvr",
        pipeline_tag="image-text-to-text",
        base_model=base_models(facts) or None,
        datasets=[str(name) for name in facts.get("datasets") or []] or None,
        tags=TAGS,
        metrics=["accuracy"] if _results(facts, name) else None,
        model_name=name,
        eval_results=_results(facts, name) or None,
        **asdict(terms),
    )
    if data.eval_results is None:
        data.pop("model_name")
    return sealed(f"---\n{data.to_yaml()}\n---\n\n{body}")


def write_card(folder: Path, **options) -> None:
    """Write `card_of` into the folder. It replaces a card that this function wrote, but never a user's own."""
    file = folder / CARD
    if file.is_file() and not is_generated(file.read_text(encoding="utf-8")):
        logger.info("%s: this is your own card; it is kept", file)
        return
    file.write_text(card_of(folder, **options), encoding="utf-8")


def sealed(text: str) -> str:
    """Add a last line to the text, so that `is_generated` recognises it."""
    text = text.rstrip("\n") + "\n"
    return f"{text}\n<!-- Written by asvr; {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def is_generated(text: str) -> bool:
    """Whether a card was written by `card_of` and nobody has changed it since."""
    found = _MARK.search(text)
    return found is not None and hashlib.sha256(text[: found.start()].encode()).hexdigest() == found[1]


def stated_terms(folder: Path) -> License:
    """The licence that the metadata of the folder's card state."""
    file = folder / CARD
    if not file.is_file():
        return License()
    data = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    return License(license=data.license, license_name=data.license_name, license_link=data.license_link)


def read_training(folder: Path) -> dict | None:
    """The facts of `asvr.engine.training_facts`. None if ``training.json`` is missing or has another form."""
    found = _read(folder / TRAINING_FILE)
    stages = None if found is None else found.get("stages")
    if isinstance(stages, list) and all(isinstance(stage, dict) for stage in stages):
        return found
    if (folder / TRAINING_FILE).is_file():
        logger.warning("%s: it has no list of stages, and is ignored", folder / TRAINING_FILE)
    return None


def base_models(facts: dict) -> list[str]:
    """The models of the Hub that this one was made from, without duplicates."""
    found = [part["weights"] for part in facts.get("parts", []) if part.get("on_hub")]
    found += [stage["init"] for stage in facts.get("stages", [])[:1] if stage.get("init_on_hub")]
    return list(dict.fromkeys(str(name).partition("@")[0] for name in found))


def counted(folder: Path) -> Counts:
    """The number of parameters by component, from the headers of the weight files."""
    from safetensors import safe_open

    counts: Counts = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            for key in tensors.keys():
                shape, part = tensors.get_slice(key).get_shape(), key.partition(".")[0]
                number = 1
                for size in shape:
                    number *= size
                counts[part] = counts.get(part, 0) + number
    return counts


def _results(facts: dict, name: str) -> list[EvalResult]:
    found = facts.get("results") or {}
    accuracy = wilson(found)
    if accuracy is None:
        return []
    return [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=str((found.get("dataset") or {}).get("type", "own")),
            dataset_name=named(found.get("dataset")),
            metric_type="accuracy",
            metric_name="exact match",
            metric_value=round(accuracy.share, 4),
            metric_args=dict(questions=accuracy.total, low=round(accuracy.low, 4), high=round(accuracy.high, 4)),
        )
    ]


def _read(file: Path) -> dict | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
