"""Applies model transforms: changes to a model after its construction, in the order of ``model_transforms``.

A transform is a class in `MODEL_TRANSFORMS` whose instances are called with the model, or a function with an argument
``model``. It changes the model in place: it may replace layers, add weights and freeze some. Weights that it adds are
trained, saved and loaded like all others, under the names of `VLM.components`.

A class may have ``merge(model)``, which undoes the transform and keeps what was learned. Saved models need it, and so
does a later stage without the transform. A class may also have ``derived``: component -> names of tensors that are
computed only from the component's files. Checkpoints do not hold them.

A class may have methods that a run calls: ``require_device(device)`` and ``require_parallel(kind)`` before it begins,
which raise ``ValueError`` if it cannot train there; ``before_sharding(model, whole, shards)`` before FSDP2 shards
all weights except those of the list ``whole``; ``after_step(model)`` after each step of the optimiser, and under FSDP2
before an evaluation; and ``without(model)``, a context manager inside which the model computes as after ``merge``, to
answer questions.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn

from asvr.base.text import short
from asvr.models.component import apart_of, source_of
from asvr.models.shards import untied_state_dict
from asvr.models.trainable import release
from asvr.registry import MODEL_TRANSFORMS


def transform_and_train(model: nn.Module, configs: Sequence[dict], train: list[str]) -> None:
    """Apply the transforms that the model does not have yet, then train only what ``train`` names.

    Weights that a component or a transform froze stay frozen. Raises ``ValueError`` if a transform changes the LLM's
    weights, but a target has a copy of the LLM."""
    if new := configs[len(model.transforms) :]:
        of_llm = model.llm.state_dict().keys()
        release(model, model.held)
        apply_transforms(model, new)
        if model.llm.state_dict().keys() != of_llm:
            _require_no_copy(model, [config["type"] for config in new])
    model.train_only(train)


def build_transform(config: dict) -> Callable:
    """Build the transform: a function that is called with the model."""
    options = dict(config)
    kind = MODEL_TRANSFORMS.get(options.pop("type"))
    return kind(**options) if inspect.isclass(kind) else partial(kind, **options)


def apply_transforms(model: nn.Module, configs: Sequence[dict]) -> None:
    """Apply transforms to a `VLM` in order. Weights that they add are in no file, so checkpoints hold them."""
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
    """Return the tensors of a component that are in the files of its ``source``, by their ids.

    They are returned too, because an id is unique only as long as its tensor exists."""
    return {id(value): value for key, value in part.state_dict(keep_vars=True).items() if key not in apart_of(part)}


def merge_transforms(model: nn.Module, keep: int = 0) -> None:
    """Undo all transforms after the first ``keep``, the last one first.

    Raises ``ValueError`` if one has no ``merge``."""
    require_merge(model, keep)
    for transform in reversed(model.transforms[keep:]):
        before = {name: part.state_dict().keys() for name, part in model.components().items()}
        transform.merge(model)
        model.transforms.pop()
        for name, part in model.components().items():
            if part.state_dict().keys() != before[name]:  # merged weights are in no file
                part.source, part.apart = None, frozenset()


def require_merge(model: nn.Module, keep: int = 0) -> None:
    """Raise ``ValueError`` if a transform after the first ``keep`` has no ``merge``."""
    for transform in model.transforms[keep:]:
        if not hasattr(transform, "merge"):
            name = getattr(transform, "func", type(transform)).__name__
            raise ValueError(
                f"model_transforms: {name} has no merge(model), which a later stage without it and saved models need: "
                "write one, or name the transform in the later stage too"
            )


def require_parallel(configs: Sequence[dict], kind: str | None) -> None:
    """Raise ``ValueError`` if a transform has a method ``require_parallel`` and cannot train with ``parallel.type``.

    kind: None if the stage has no ``parallel``."""
    for config in configs:
        if hasattr(transform := build_transform(config), "require_parallel"):
            transform.require_parallel(kind)


def before_sharding(model: nn.Module, whole: Sequence[nn.Parameter], shards: int) -> None:
    """Call ``before_sharding`` of the transforms that have it. FSDP2 will shard all parameters but ``whole``."""
    for transform in model.transforms:
        if hasattr(transform, "before_sharding"):
            transform.before_sharding(model, whole, shards)


def after_step(model: nn.Module) -> None:
    """Call ``after_step`` of the transforms that have it."""
    for transform in model.transforms:
        if hasattr(transform, "after_step"):
            transform.after_step(model)


@contextmanager
def without_transforms(model: nn.Module) -> Iterator[None]:
    """Inside the block, transforms that have a method ``without`` do not take part."""
    with ExitStack() as stack:
        for transform in model.transforms:
            if hasattr(transform, "without"):
                stack.enter_context(transform.without(model))
        yield


def require_device(configs: Sequence[dict], device: torch.device) -> None:
    """Raise ``ValueError`` if a transform has a method ``require_device`` and cannot train on this device."""
    for config in configs:
        if hasattr(transform := build_transform(config), "require_device"):
            transform.require_device(device)
