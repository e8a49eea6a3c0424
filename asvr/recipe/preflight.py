"""Checks before a run: names and fields, sizes, and whether every pretrained model is on this machine."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import Registry
from torch import device, nn

from asvr.base import hub
from asvr.base.hub_model import find_model, hub_name, local_model
from asvr.data.layouts import ImageLayout, WholeImage
from asvr.data.text_tokenizer import HFTokenizer
from asvr.models.component import WEIGHT_FIELDS
from asvr.models.contracts import check_contracts
from asvr.models.encoders.base import Encoder, grids_of
from asvr.models.targets import CodeTarget
from asvr.models.transforms import require_merge, transform_and_train
from asvr.recipe.components import OWN, find, vision_parts
from asvr.recipe.config import distinct
from asvr.recipe.recipe import Recipe, Stage
from asvr.recipe.signatures import constructor_fields
from asvr.recipe.untrained_heads import warn_of_untrained_heads
from asvr.recipe.validate import check_config
from asvr.registry import ENCODERS, LLMS, MODELS, TEXT_TOKENIZERS, VISUAL_TOKENIZERS


def preflight(recipe: Recipe) -> dict[str, ImageLayout]:
    """Check all that can be checked without reading a weight or an image. Returns the layout of images by stage.

    For stages that ``recipe`` leaves out, only keys and types are checked. Raises ``ValueError`` with all problems of a
    wrong config, or for sizes that do not fit together. Raises `asvr.base.hub.MissingWeights` with all pretrained
    models and data files that are not on this machine.
    """
    check_config(recipe.config)
    stages = recipe.stages
    try:
        if any(_needs_folder(stage) for stage in stages.values()):
            hub.require_all(distinct([w for stage in stages.values() for w in wanted_weights(stage)]))
        models = check_sizes(recipe)
        wanted = [w for name, model in models.items() for w in wanted_weights(stages[name], model)]
        hub.require_all(distinct(wanted + wanted_starts(stages)))
    except hub.MissingWeights as error:  # one message lists all that the user has to fetch, data too
        raise hub.MissingWeights(error.models, missing_annotations(stages)) from None
    return {name: model.layout for name, model in models.items()}


def missing_annotations(stages: dict[str, Stage]) -> list[str]:
    """``section of stages: file`` for every ``ann_file`` that is missing, also in the sources of a mixture."""
    found: dict[tuple, list[str]] = {}
    for name, stage in stages.items():
        for section in ("text_tokenizer", "data", "evaluation", "validation"):
            for file in _annotations(getattr(stage, section)):
                if not Path(file).is_file():
                    found.setdefault((section, file), []).append(name)
    return [f"{section} of {', '.join(distinct(names))}: {file}" for (section, file), names in found.items()]


def _annotations(config) -> Iterator[str]:
    if isinstance(config, dict):
        if isinstance(config.get("ann_file"), str):
            yield config["ann_file"]
        config = list(config.values())
    if isinstance(config, list | tuple):
        for item in config:
            yield from _annotations(item)


def check_sizes(recipe: Recipe) -> dict[str, nn.Module]:
    """Build the model of each stage on the meta device, and return them by stage.

    Warns of heads that no stage trains. Raises ``ValueError`` if parts do not fit together, or if one does not keep its
    contract."""
    models = {}
    for name, stage in recipe.stages.items():
        models[name] = build_meta(stage)
        check_contracts(models[name])
        check_native(f"stages.{name}", models[name], stage.data.get("image_aspect", "square"))
        moving = [t.name for t in models[name].targets if getattr(t, "shares_encoder", False)]
        if "encoder" in stage.trained_components and moving:
            raise ValueError(
                f"stages.{name}.train names the encoder, but target {moving[0]!r} quantises its features, which would "
                "change in training: give that target's tokenizer an `encoder` of its own"
            )
        check_positions(f"stages.{name}", models[name])
        if (before := recipe.stages.get(stage.init)) is not None:
            require_merge(models[before.name], stage.transforms_shared_with(before))
        layout = models[name].layout
        aspect = stage.data.get("image_aspect", layout.aspects[0])
        if aspect not in layout.aspects:
            raise ValueError(
                f"data.image_aspect={aspect!r} (stage {name}) has no effect with "
                f"{type(layout).__name__}: set it to {layout.aspects[0]!r}"
            )
        tokens = layout.largest().num_tokens
        if stage.data.max_length <= tokens + 1:
            raise ValueError(
                f"data.max_length={stage.data.max_length} (stage {name}) has no room for text: an image alone takes "
                f"{'' if layout.fixed else 'up to '}{tokens} tokens; set it higher"
            )
        positions = getattr(models[name].llm, "max_positions", None)
        if positions is not None and stage.data.max_length > positions:
            raise ValueError(
                f"data.max_length={stage.data.max_length} (stage {name}): the LLM has {positions} positions; set it to "
                "that or less"
            )
    warn_of_untrained_heads(recipe, models)
    return models


def check_native(stage: str, model: nn.Module, image_aspect: str) -> None:
    """Raise ``ValueError`` for settings that do not fit an encoder that reads images in their own resolution.

    The encoder may be the model's or a tokenizer's own."""
    for target in model.targets:
        own = isinstance(target, CodeTarget) and not target.shares_encoder
        if own and hasattr(target.tokenizer.transform, "grid_of"):
            raise ValueError(
                f"{target.key}.tokenizer.encoder ({stage}) reads images in their own resolution, so its codes have "
                "other cells than the model's encoder: leave it out to quantise the features of the model's encoder, "
                "or name one that reads images of one size"
            )
    if not hasattr(model.encoder.transform, "grid_of"):
        return
    reads = f"{type(model.encoder).__name__} reads images in their own resolution"
    if image_aspect != "square":
        raise ValueError(f"data.image_aspect={image_aspect!r} ({stage}): {reads}: set it to 'square'")
    if not isinstance(model.layout, WholeImage):
        raise ValueError(f"model.layout.type={type(model.layout).__name__!r} ({stage}): {reads}: leave the layout out")
    for target in model.targets:
        if isinstance(target, CodeTarget) and getattr(target.tokenizer.transform, "center_crop", False):
            raise ValueError(
                f"{target.key} ({stage}): its tokenizer crops images, and {reads}, so their cells differ: set "
                "transform=dict(center_crop=False) for the encoder of this tokenizer"
            )


def check_positions(stage: str, model: nn.Module) -> None:
    """Raise ``ValueError`` if a projector adds the positions of one square grid to tokens that are no square grid."""
    encoder = model.encoder
    native, several = hasattr(encoder.transform, "grid_of"), len(grids_of(encoder)) > 1
    if getattr(model.projector, "place", None) is None or not (native or several):
        return
    why = "reads images in their own resolution" if native else "gives the tokens of several grids"
    raise ValueError(
        f"model.projector.positions=True ({stage}): {type(encoder).__name__} {why}, so its tokens are no square grid: "
        "leave `positions` out"
    )


def build_meta(stage: Stage) -> nn.Module:
    """Build the model of a stage on the meta device, without weights or memory. Only what ``train`` names is trained.

    The size of a text tokenizer that is learned from data is its ``vocab_size``. The size of a pretrained text
    tokenizer that is not on this machine is unknown. Raises ``ValueError`` if parts do not fit together.
    """
    vocab_size = stage.text_tokenizer.get("vocab_size") or _num_ids(stage.text_tokenizer)
    try:
        with device("meta"):
            model = MODELS.build(stage.model, default_args=dict(vocab_size=vocab_size, load_weights=False))
    except hub.MissingWeights:
        raise
    except (ValueError, TypeError, ArithmeticError) as error:  # torch and transformers raise them for wrong sizes
        raise ValueError(f"the model cannot be built: {error}") from error
    with device("meta"):
        transform_and_train(model, stage.model_transforms, list(stage.train))
    return model.train()


def _num_ids(text_tokenizer: Config) -> int | None:
    folder = hub.resolve(text_tokenizer.name) if find(TEXT_TOKENIZERS, text_tokenizer.type) is HFTokenizer else None
    return None if folder is None else _num_ids_in(str(folder))


@cache  # a run builds its models about a dozen times
def _num_ids_in(folder: str) -> int:
    return HFTokenizer(name=folder).num_ids


def _needs_folder(stage: Stage) -> bool:
    """Whether a part has no `arch`, so that only its folder says what its architecture is."""
    return any(
        part.get("name") and not part.get("arch") and "arch" in constructor_fields(find(registry, part["type"]))[1]
        for _, part, registry in _parts(stage)
        if registry is not VISUAL_TOKENIZERS
    )


def _parts(stage: Stage) -> Iterator[tuple[str, dict, Registry]]:
    """Yield the LLM and all components that see images, as `vision_parts` does."""
    yield from vision_parts("model.encoder", stage.model.encoder, ENCODERS)
    yield "model.llm", stage.model.llm, LLMS
    for i, entry in enumerate(stage.model.reconstruction):
        if isinstance(entry.get("teacher"), dict):
            yield from vision_parts(f"model.reconstruction[{i}].teacher", entry.teacher, ENCODERS)
        if _has_tokenizer(entry):
            yield from vision_parts(f"model.reconstruction[{i}].tokenizer", entry.tokenizer, VISUAL_TOKENIZERS)


def _has_tokenizer(entry: dict) -> bool:
    """Whether an entry of ``reconstruction`` has a visual tokenizer. A user's own target may use the name for another
    kind of value."""
    return isinstance(entry.get("tokenizer"), dict)


def wanted_weights(stage: Stage, model: nn.Module | None = None) -> list[hub.Wanted]:
    """List each pretrained model that a stage's config names. model: the stage's model, for the sizes of tokenizers."""
    wanted = _wanted("text_tokenizer", stage.text_tokenizer, TEXT_TOKENIZERS)
    targets = [] if model is None else model.targets
    sizes = {
        f"model.reconstruction[{i}].tokenizer": _own_bytes(target.teacher)
        for i, target in enumerate(targets)
        if isinstance(target.teacher, nn.Module) and _has_tokenizer(stage.model.reconstruction[i])
    }
    for key, part, registry in _parts(stage):
        wanted += _wanted(key, part, registry, size_bytes=sizes.get(key))
    return wanted


def wanted_starts(stages: dict[str, Stage]) -> list[hub.Wanted]:
    """List the models of the Hub that stages start from (``init='org/name'``) and that are not on this machine.

    With ``ASVR_DOWNLOAD=1`` they are downloaded instead. Raises ``ValueError`` if that fails, or if the folder on this
    machine is no model of this library."""
    wanted = []
    for stage in stages.values():
        if hub_name(stage.init) is None or local_model(stage.init) is not None:
            continue
        if os.environ.get("ASVR_DOWNLOAD") == "1":
            find_model(stage.init)
        else:
            name, revision = hub_name(stage.init)
            if (folder := hub.resolve(name)) is not None and revision is None:
                raise ValueError(
                    f"stages.{stage.name}.init={name!r}: {folder} is not a model of this library: it has no asvr.json"
                )
            fetch = f"hf download {name}" + (f" --revision {revision}" if revision else "")
            wanted.append(hub.Wanted(stage.init, f"stages.{stage.name}.init", fetch=fetch))
    return wanted


def _wanted(key: str, component: dict, registry, size_bytes: int | None = None) -> list[hub.Wanted]:
    """The pretrained models of one component. A user's own component is skipped, since it may find its weights in
    another way."""
    if not find(registry, component["type"]).__module__.startswith(OWN):
        return []
    names = [component[field] for field in WEIGHT_FIELDS if component.get(field)]
    arch = component.get("arch") if "model_type" in (component.get("arch") or {}) else None
    return [hub.Wanted(name, key, size_bytes, arch, subfolder=component.get("subfolder")) for name in names]


def _own_bytes(tokenizer: nn.Module) -> int:
    """The bytes of a tokenizer, without an encoder inside it."""
    encoders = [module for module in tokenizer.modules() if isinstance(module, Encoder)]
    inside = {id(part) for encoder in encoders for part in encoder.modules() if part is not encoder}
    return tensor_bytes(tokenizer) - sum(tensor_bytes(encoder) for encoder in encoders if id(encoder) not in inside)


def tensor_bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
