"""Parts of the model that compute something ahead of training, built as the stages build them: weights that no file
holds are drawn from the seed, and must be the same ones there."""

from collections.abc import Callable

import torch

from asvr.models.component import fingerprint_of, source_of
from asvr.models.targets import CodeTarget, build_target, build_tokenizer
from asvr.models.targets.codes import CodeTruth
from asvr.recipe.build import as_in_training, build_model
from asvr.recipe.components import find
from asvr.recipe.preflight import build_meta
from asvr.recipe.recipe import Recipe, Stage
from asvr.registry import ENCODERS, TARGETS


def encoder_ahead(recipe: Recipe, device: torch.device):
    """The frozen encoder of all stages. It is the first that `build_model` builds."""
    torch.manual_seed(recipe.runtime.seed)
    return as_in_training(ENCODERS.build(recipe.first.model.encoder), recipe.first, device)


def tokenizer_ahead(recipe: Recipe, target: dict, encoder, device: torch.device, vocab_size: Callable[[], int]):
    """The tokenizer of a target, which may quantise what ``encoder`` gives.

    vocab_size: gives `TextTokenizer.num_ids`. It and the LLM are needed where the tokenizer's weights are drawn: the
    model draws the LLM's before.
    """
    tokenizer = build_tokenizer(target["tokenizer"], encoder)
    if source_of(tokenizer) is None and is_drawn(lambda: build_tokenizer(target["tokenizer"], encoder)):
        model = build_model(_stage_of(recipe, target), vocab_size())
        tokenizer.load_state_dict(model.tokenizers[target["name"]].state_dict())
    return as_in_training(tokenizer, recipe.first, device)


def is_code_target(entry: dict) -> bool:
    """Whether an entry of ``reconstruction`` is a `CodeTarget`, and no class of a user's that derives from it."""
    return find(TARGETS, entry.get("type", "CodeTarget")) is CodeTarget


def truth_ahead(recipe: Recipe, entry: dict, encoder, device: torch.device, vocab_size: Callable[[], int]):
    """What says what a target reconstructs: a `CodeTruth`, or the target itself beside an LLM without memory; None
    where it cannot be cached. Raises ``ValueError`` where its teacher has random weights, which no file holds."""
    if is_code_target(entry):
        tokenizer = tokenizer_ahead(recipe, entry, encoder, device, vocab_size)
        return CodeTruth(name=entry["name"], tokenizer=tokenizer, encoder=encoder)
    model = build_meta(_stage_of(recipe, entry))

    def build():
        given = dict(encoder=encoder, llm=model.llm, model_projector=model.projector, load_weights=True)
        return build_target(entry, key=f"target {entry['name']!r}", **given)

    target = build()
    if target.truth_spec() is None or target.keeps_teacher:  # a kept teacher moves, or stands in checkpoints alone
        return None
    if target.teacher is not None:
        if source_of(target.teacher) is None and is_drawn(lambda: build().teacher):
            raise ValueError(
                f"reconstruction target {entry['name']!r}: its teacher has random weights, which stand in no file: "
                "name weights, or set data.cache=False"
            )
        as_in_training(target.teacher, recipe.first, device)
    return target


def _stage_of(recipe: Recipe, entry: dict) -> Stage:
    """The first stage with this target."""
    return next(
        stage
        for stage in recipe.stages.values()
        if entry["name"] in [other["name"] for other in stage.model.reconstruction]
    )


def is_drawn(build: Callable[[], torch.nn.Module]) -> bool:
    """Whether the weights of what ``build`` makes depend on the state of the random number generator."""
    found = set()
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            found.add(fingerprint_of(build()))
    return len(found) > 1
