"""Builds the parts of the model that compute outputs before training.

They are built as the stages build them, so that weights that are drawn from the seed are the same in both."""

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
    """Build the frozen encoder of all stages. `build_model` also builds it first, so its random weights agree."""
    torch.manual_seed(recipe.runtime.seed)
    return as_in_training(ENCODERS.build(recipe.first.model.encoder), recipe.first, device)


def tokenizer_ahead(recipe: Recipe, target: dict, encoder, device: torch.device, vocab_size: Callable[[], int]):
    """Build the visual tokenizer of a target. It may quantise the features of ``encoder``.

    vocab_size: a function that returns `TextTokenizer.num_ids`. If the tokenizer's weights are random, the whole model
    is built to get them, since the model draws the LLM's weights before.
    """
    tokenizer = build_tokenizer(target["tokenizer"], encoder)
    if source_of(tokenizer) is None and is_drawn(lambda: build_tokenizer(target["tokenizer"], encoder)):
        model = build_model(_stage_of(recipe, target), vocab_size())
        tokenizer.load_state_dict(model.tokenizers[target["name"]].state_dict())
    return as_in_training(tokenizer, recipe.first, device)


def is_code_target(entry: dict) -> bool:
    """Whether an entry of ``reconstruction`` is exactly a `CodeTarget`, not a user's class that derives from it."""
    return find(TARGETS, entry.get("type", "CodeTarget")) is CodeTarget


def truth_ahead(recipe: Recipe, entry: dict, encoder, device: torch.device, vocab_size: Callable[[], int]):
    """Build the object that computes the truth of a target: a `CodeTruth`, or the target itself.

    The target is built with an LLM without memory. Returns None if the truth cannot be cached. Raises ``ValueError`` if
    the target's teacher has random weights."""
    if is_code_target(entry):
        tokenizer = tokenizer_ahead(recipe, entry, encoder, device, vocab_size)
        return CodeTruth(name=entry["name"], tokenizer=tokenizer, encoder=encoder)
    model = build_meta(_stage_of(recipe, entry))

    def build():
        given = dict(encoder=encoder, llm=model.llm, model_projector=model.projector, load_weights=True)
        return build_target(entry, key=f"target {entry['name']!r}", **given)

    target = build()
    if target.truth_spec() is None or target.keeps_teacher:  # a kept teacher changes, or only checkpoints hold it
        return None
    if target.teacher is not None:
        if source_of(target.teacher) is None and is_drawn(lambda: build().teacher):
            raise ValueError(
                f"reconstruction target {entry['name']!r}: its teacher has random weights, so its outputs cannot be "
                "cached: name weights for the teacher, or set data.cache=False"
            )
        as_in_training(target.teacher, recipe.first, device)
    return target


def _stage_of(recipe: Recipe, entry: dict) -> Stage:
    """The first stage that has this target."""
    return next(
        stage
        for stage in recipe.stages.values()
        if entry["name"] in [other["name"] for other in stage.model.reconstruction]
    )


def is_drawn(build: Callable[[], torch.nn.Module]) -> bool:
    """Whether the module that ``build`` makes has random weights. It is built with two seeds and compared."""
    found = set()
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            found.add(fingerprint_of(build()))
    return len(found) > 1
