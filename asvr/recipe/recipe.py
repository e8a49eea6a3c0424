"""Turns a config into a `Recipe` of `Stage` objects, once. All higher layers take these, not the config."""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from asvr.models.trainable import components_of
from asvr.recipe.config import SCRATCH, load_config, stage_config
from asvr.recipe.trackers import as_backends
from asvr.recipe.validate import OPTIONAL, check_config

CACHE = "the cache serves all stages"  # the reason, in error messages, why stages must agree on a setting


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage with all its settings, also those that it shares with other stages.

    name: its name in ``stages`` of the config. init: where its weights come from, see ``stages.<name>.init``. train:
    the components that are trained, or patterns of weights, see `asvr.models.trainable`. The other fields are sections
    of the config, as this stage runs with them. None: the stage does not have the section.
    """

    name: str
    init: str
    train: tuple[str, ...]
    text_tokenizer: ConfigDict
    model: ConfigDict
    data: ConfigDict
    optim: ConfigDict
    schedule: ConfigDict
    runtime: ConfigDict
    evaluation: ConfigDict | None = None
    validation: ConfigDict | None = None
    parallel: ConfigDict | None = None
    custom_hooks: list[ConfigDict] | None = None
    visualizer: ConfigDict | None = None
    model_transforms: tuple[ConfigDict, ...] = ()

    @property
    def trained_components(self) -> set[str]:
        """The components that the stage trains, in full or in part."""
        return components_of(self.train)

    def transforms_shared_with(self, before: "Stage") -> int:
        """The number of transforms that both stages begin with.

        If this stage starts from the other, these transforms stay, and the later ones are merged into the weights."""
        pairs = zip(self.model_transforms, before.model_transforms, strict=False)  # one may have more
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def to_dict(self) -> dict:
        """All sections as plain dicts and lists. ``model_transforms`` is only there if the stage has some, since
        earlier versions had none."""
        sections = ("text_tokenizer", "model", "data", "optim", "schedule", "runtime")
        found = dict(train=list(self.train), **{key: getattr(self, key).to_dict() for key in sections})
        transforms = [transform.to_dict() for transform in self.model_transforms]
        return dict(found, model_transforms=transforms) if transforms else found


def load_recipe(path: str | Path, cfg_options: dict | None = None) -> "Recipe":
    """Load a config, check it, and return its recipe. Raises ``ValueError`` with all problems of the config."""
    config = load_config(path, cfg_options)
    check_config(config)
    return Recipe(config)


class Recipe:
    """The stages of a config, in the order they run, with the settings that they share.

    config: the loaded config. It should have passed `asvr.recipe.validate.check_config`.
    """

    def __init__(self, config: Config, stages: dict[str, Stage] | None = None):
        self.config = config
        self.text_tokenizer, self.runtime = config.get("text_tokenizer"), config.runtime
        if stages is None:
            names = list(config.stages)
            before = dict(zip(names, [SCRATCH, *names[:-1]], strict=True))
            stages = {name: _stage(config, name, before[name]) for name in names}
        self.stages = stages

    @property
    def first(self) -> Stage:
        return next(iter(self.stages.values()))

    @property
    def last(self) -> Stage:
        return list(self.stages.values())[-1]

    def stage(self, name: str | None) -> Stage:
        """The stage of a name; None: the last one. Raises ``ValueError`` if there is no such stage."""
        if name is None:
            return self.last
        if name not in self.stages:
            raise ValueError(f"the config has no stage {name!r}: expected one of {list(self.stages)}")
        return self.stages[name]

    def only(self, name: str) -> "Recipe":
        """The recipe with only one of its stages."""
        return Recipe(self.config, {name: self.stages[name]})

    def by_image_aspect(self) -> dict[str, "Recipe"]:
        """For each ``data.image_aspect`` of the stages, the recipe with only the stages that have it.

        These stages see the same pixels of an image, so one cache can serve them."""
        groups: dict[str, dict[str, Stage]] = {}
        for name, stage in self.stages.items():
            groups.setdefault(stage.data.image_aspect, {})[name] = stage
        return {aspect: Recipe(self.config, stages) for aspect, stages in groups.items()}

    def shared(self, key: str, why: str) -> Any:
        """The value of ``data.<key>``, or None if it is not set. Raises ``ValueError`` if stages differ in it.

        why: the reason in the message."""
        found = {name: stage.data.get(key) for name, stage in self.stages.items()}
        value = found[self.first.name]
        for name, own in found.items():
            if own != value:
                raise ValueError(
                    f"{why}, but data.{key} is {value!r} in stage {self.first.name} and {own!r} in {name}: set the "
                    "same value in all stages"
                )
        return value

    def targets(self) -> list[ConfigDict]:
        """All reconstruction targets of all stages, without duplicates."""
        found = []
        for stage in self.stages.values():
            found += [entry for entry in stage.model.get("reconstruction") or [] if entry not in found]
        return found

    def with_fitted(self, folders: dict[str, str]) -> "Recipe":
        """The recipe with folders of fitted visual tokenizers in place of ``fit``. folders: by the target's name."""

        def fitted(stage: Stage) -> Stage:
            model = stage.model.copy()
            model.reconstruction = [_fitted(entry, folders) for entry in model.get("reconstruction") or []]
            return replace(stage, model=model)

        return Recipe(self.config, {name: fitted(stage) for name, stage in self.stages.items()})


def _fitted(entry: ConfigDict, folders: dict[str, str]) -> ConfigDict:
    if entry["name"] not in folders or "fit" not in entry:
        return entry
    entry = entry.copy()
    del entry["fit"]
    entry.tokenizer = ConfigDict(entry.tokenizer, name=folders[entry["name"]])
    return entry


def _stage(config: Config, name: str, before: str) -> Stage:
    own = stage_config(config, name)
    sections = {key: own.get(key) or None for key in OPTIONAL}
    sections["visualizer"] = as_backends(sections["visualizer"])
    return Stage(
        name=name,
        init=own.get("init", before),
        train=tuple(own.train),
        text_tokenizer=own.get("text_tokenizer"),
        model=own.model,
        data=own.data,
        optim=own.optim,
        schedule=own.schedule,
        runtime=own.runtime,
        model_transforms=tuple(own.get("model_transforms") or ()),
        **sections,
    )
