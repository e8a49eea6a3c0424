"""Model transforms: what is done to a model behind its construction, in the order of ``model_transforms``.

A transform is a class of `MODEL_TRANSFORMS` whose instances are called with the model, or a function with an argument
``model``. It changes the model in place: it may replace layers, add weights and freeze some. What it adds is trained,
saved and loaded as all else is, under the names of `VLM.components`. A class may have ``merge(model)``, which undoes
the transform and keeps what was learned: a later stage without the transform and saved models need it. It may have
``derived``: component -> names of tensors that the transform makes of the component's files alone, which checkpoints
need not hold.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from asvr.base.text import short
from asvr.models.component import apart_of, source_of
from asvr.models.shards import untied_state_dict
from asvr.models.trainable import release
from asvr.registry import MODEL_TRANSFORMS


def transform_and_train(model: nn.Module, configs: Sequence[dict], train: list[str]) -> None:
    """Apply the transforms that the model does not have yet, and give gradients to what ``train`` names of what
    components and transforms did not freeze. Raises ``ValueError`` where a transform gives the LLM other weights than
    those that a target has copied."""
    if new := configs[len(model.transforms) :]:
        of_llm = model.llm.state_dict().keys()
        release(model, model.held)
        apply_transforms(model, new)
        if model.llm.state_dict().keys() != of_llm:
            _require_no_copy(model, [config["type"] for config in new])
    model.train_only(train)


def build_transform(config: dict) -> Callable:
    """What is called with the model."""
    options = dict(config)
    kind = MODEL_TRANSFORMS.get(options.pop("type"))
    return kind(**options) if inspect.isclass(kind) else partial(kind, **options)


def apply_transforms(model: nn.Module, configs: Sequence[dict]) -> None:
    """Apply transforms to a model of `VLM` in order. What they add is in no file: checkpoints hold it."""
    for config in configs:
        in_files = {name: _in_files(part) for name, part in model.components().items() if source_of(part) is not None}
        transform = build_transform(config)
        result = transform(model=model) if isinstance(transform, partial) else transform(model)
        if result is not None and result is not model:
            raise ValueError(
                f"model_transforms: {config['type']!r} returned {short(result)}: change the model in place, and return "
                "it or nothing"
            )
        model.transforms.append(transform)
        for name, known in in_files.items():
            part = model.components()[name]
            new = {key for key, value in part.state_dict(keep_vars=True).items() if id(value) not in known}
            made_again = getattr(transform, "derived", {}).get(name, set())
            part.apart = frozenset((new - made_again) & untied_state_dict(part).keys())


def _require_no_copy(model: nn.Module, transforms: list[str]) -> None:
    for target in model.targets:
        if target.copies_llm:
            raise ValueError(
                f"model_transforms: {', '.join(transforms)} gives the LLM other weights, and {target.key} "
                f"({type(target).__name__}) has a copy that follows those it had: leave one of the two out"
            )


def _in_files(part: nn.Module) -> dict[int, torch.Tensor]:
    """The tensors of a component that stand in its ``source``, by their ids, which are theirs as long as they live."""
    return {id(value): value for key, value in part.state_dict(keep_vars=True).items() if key not in apart_of(part)}


def merge_transforms(model: nn.Module, keep: int = 0) -> None:
    """Undo all transforms behind the first ``keep``, the last one first. Raises ``ValueError`` where one has no
    ``merge``."""
    require_merge(model, keep)
    for transform in reversed(model.transforms[keep:]):
        before = {name: part.state_dict().keys() for name, part in model.components().items()}
        transform.merge(model)
        model.transforms.pop()
        for name, part in model.components().items():
            if part.state_dict().keys() != before[name]:  # what is merged stands in no file
                part.source, part.apart = None, frozenset()


def require_merge(model: nn.Module, keep: int = 0) -> None:
    """Raise ``ValueError`` where a transform behind the first ``keep`` has no ``merge``."""
    for transform in model.transforms[keep:]:
        if not hasattr(transform, "merge"):
            name = getattr(transform, "func", type(transform)).__name__
            raise ValueError(
                f"model_transforms: {name} has no merge(model), which a later stage without it and saved models need: "
                "write one, or name the transform in the later stage too"
            )


def require_device(configs: Sequence[dict], device: torch.device) -> None:
    """Raise ``ValueError`` where a transform cannot train on a device, which a class tells by this method."""
    for config in configs:
        if hasattr(transform := build_transform(config), "require_device"):
            transform.require_device(device)
