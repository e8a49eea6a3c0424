"""The sizes of a recipe as numbers, for pages that compare recipes. The dry run prints them as tables."""

from torch import nn

from asvr.flops.count import Sample
from asvr.flops.memory import in_one_line, plan_memory
from asvr.flops.step import parts_by_stage
from asvr.models.trainable import packed_weights
from asvr.profiling.dry_run import step_factors
from asvr.recipe.preflight import check_sizes
from asvr.recipe.recipe import Recipe


def recipe_sizes(recipe: Recipe, sample: Sample) -> dict:
    """The sizes of a recipe.

    parameters: all of the last stage, with frozen parts and visual tokenizers. tokens: the largest number of visual
    tokens of an image. stages: by name, `trained` parameters, `flops` of a training step on one sample, and `memory` in
    bytes on one card. If something cannot be traced, a text says why. Raises ``ValueError`` for a config whose parts do
    not fit together.
    """
    models = check_sizes(recipe)
    last = models[recipe.last.name]
    found = dict(parameters=_held(last), tokens=last.layout.largest().num_tokens, stages={})
    flops = _flops(recipe, models, sample)
    for name, model in models.items():
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        found["stages"][name] = dict(trained=trained, flops=flops[name])
    for name, model in models.items():  # last, because a plan makes its model unusable
        found["stages"][name]["memory"] = _memory(recipe, name, model)
    return found


def _held(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() for tensor in tensors) + packed_weights(model)


def _flops(recipe: Recipe, models: dict[str, nn.Module], sample: Sample) -> dict[str, float | str]:
    factors = step_factors(recipe, models)
    try:
        by_stage = parts_by_stage(recipe, models, sample)
    except Exception as error:  # tracing runs a user's own component, which may raise anything
        return dict.fromkeys(models, in_one_line(error))
    return {name: sum(part.flops * factors[name](part) for part in parts) for name, parts in by_stage.items()}


def _memory(recipe: Recipe, name: str, model: nn.Module) -> int | str:
    try:
        return plan_memory(recipe.stages[name], model).total
    except Exception as error:  # as above
        return in_one_line(error)
