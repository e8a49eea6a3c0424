"""Parts of the model that compute something ahead of training, built as the stages build them: weights that no file
holds are drawn from the seed, and must be the same ones there."""

from collections.abc import Callable

import torch

from asvr.models.component import fingerprint_of, source_of
from asvr.models.targets import build_tokenizer
from asvr.recipe.build import as_in_training, build_model
from asvr.recipe.recipe import Recipe
from asvr.registry import ENCODERS


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
        stage = next(
            stage
            for stage in recipe.stages.values()
            if target["name"] in [entry["name"] for entry in stage.model.reconstruction]
        )
        model = build_model(stage, vocab_size())
        tokenizer.load_state_dict(model.tokenizers[target["name"]].state_dict())
    return as_in_training(tokenizer, recipe.first, device)


def is_drawn(build: Callable[[], torch.nn.Module]) -> bool:
    """Whether the weights of what ``build`` makes depend on the state of the random number generator."""
    found = set()
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            found.add(fingerprint_of(build()))
    return len(found) > 1
