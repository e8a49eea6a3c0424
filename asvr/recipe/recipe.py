"""A recipe: a config, read once, as the stages that everything above takes."""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from asvr.models.trainable import components_of
from asvr.recipe.config import SCRATCH, load_config, stage_config
from asvr.recipe.trackers import as_backends
from asvr.recipe.validate import OPTIONAL, check_config

CACHE = "the cache serves all stages"  # why they share a setting


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage with all its settings, those that it shares with other stages among them.

    name: in ``stages`` of the config. init: what it starts from, see ``stages.<name>.init``. train: the components that
    are trained, and patterns of weights, see `asvr.models.trainable`. The rest are sections of the config as the stage
    runs with them; None: the stage does without.
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
        """Those of which the stage trains something."""
        return components_of(self.train)

    def transforms_shared_with(self, before: "Stage") -> int:
        """How many transforms both stages begin with. Where this one starts from the other, they stay; those behind
        them are merged."""
        pairs = zip(self.model_transforms, before.model_transforms, strict=False)  # one may have more
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def to_dict(self) -> dict:
        """Plain dicts and lists of all sections. Transforms are there if there are any: earlier versions had none."""
        sections = ("text_tokenizer", "model", "data", "optim", "schedule", "runtime")
        found = dict(train=list(self.train), **{key: getattr(self, key).to_dict() for key in sections})
        transforms = [transform.to_dict() for transform in self.model_transforms]
        return dict(found, model_transforms=transforms) if transforms else found


def load_recipe(path: str | Path, cfg_options: dict | None = None) -> "Recipe":
    """`load_config`, checked. Raises ``ValueError`` with every problem of the config."""
    config = load_config(path, cfg_options)
    check_config(config)
    return Recipe(config)


class Recipe:
    """The stages of a config in the order they run, and what they share.

    config: as it was loaded. It should have passed `asvr.recipe.validate.check_config`.
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
        """None: the last one. Raises ``ValueError`` for a name that is none."""
        if name is None:
            return self.last
        if name not in self.stages:
            raise ValueError(f"the config has no stage {name!r}: expected one of {list(self.stages)}")
        return self.stages[name]

    def only(self, name: str) -> "Recipe":
        """With one stage, where that alone is to run."""
        return Recipe(self.config, {name: self.stages[name]})

    def shared(self, key: str, why: str) -> Any:
        """``data.<key>``, None where it is not set. Raises ``ValueError`` where stages differ in it."""
        found = {name: stage.data.get(key) for name, stage in self.stages.items()}
        value = found[self.first.name]
        for name, own in found.items():
            if own != value:
                raise ValueError(
                    f"{why}, and data.{key} is {value!r} in stage {self.first.name} and {own!r} in {name}: give all "
                    "stages one"
                )
        return value

    def targets(self) -> list[ConfigDict]:
        """Every entry of every stage's list of reconstruction targets, each once."""
        found = []
        for stage in self.stages.values():
            found += [entry for entry in stage.model.get("reconstruction") or [] if entry not in found]
        return found

    def with_fitted(self, folders: dict[str, str]) -> "Recipe":
        """With the folder of each fitted visual tokenizer, by the target's name, in place of the target's ``fit``."""

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
