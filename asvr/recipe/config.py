"""Loads a config file, and makes the config of one of its stages."""

import copy
import logging
import os
import pprint
import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings

from asvr.base.files import replace_text
from asvr.base.hub_model import MODEL_FILE as MODEL_FILE  # for all who know a config
from asvr.base.hub_model import local_model
from asvr.base.recipes import EXAMPLES, config_file, home
from asvr.recipe.config_file import DELETE, assigns, misfit, read_config_file
from asvr.registry import SCOPE

PUBLISHED = "published"
SCRATCH = "scratch"  # an `init`: the stage starts from the weights that the config names


def load_config(path: str | Path, cfg_options: dict | None = None) -> Config:
    """Read a config file, apply ``cfg_options`` and import the modules of its ``custom_imports``.

    cfg_options: dotted keys and their values; a number in a key picks an entry of a list. path: a file, or the name of
    a recipe, see `asvr.base.recipes.config_file`. Modules are also looked up from the current directory. The library's
    own components are registered later, when the first of a kind is needed.

    Raises ``ValueError`` that names the missing file, the wrong option, or the module that cannot be imported.
    """
    path = config_file(path)
    if path.suffix != ".py":
        raise ValueError(f"{path} is not a config: expected a Python file (.py)")
    cfg = read_config_file(path)
    if PUBLISHED in cfg and not assigns(path, PUBLISHED):
        cfg.pop(PUBLISHED)  # published numbers of a base are not those of a config that inherits from it
    for key, value in (cfg_options or {}).items():
        if (why := misfit(cfg._cfg_dict, _nested(key, value))) is not None:
            raise ValueError(f"--cfg-options {key}={value!r} does not fit {path}: {why}")
        cfg.merge_from_dict({key: value})
    for line in options_without_effect(cfg, cfg_options or {}):
        logging.getLogger("asvr").warning("%s", line)
    cfg.setdefault("default_scope", SCOPE)
    init_default_scope(cfg.default_scope)
    if "custom_imports" in cfg:
        import_custom(cfg.custom_imports)
    return cfg


def _nested(key: str, value) -> dict:
    """``"a.b", 1`` -> ``{"a": {"b": 1}}``."""
    *above, last = key.split(".")
    nested = {last: value}
    for name in reversed(above):
        nested = {name: nested}
    return nested


def dump_config(cfg: Config, file: Path) -> None:
    """Write a config as a file that `load_config` reads.

    MMEngine's own dump sorts the keys, which would change the order of the stages."""
    sections = [f"{key} = {pprint.pformat(v, width=110, sort_dicts=False)}\n" for key, v in cfg.to_dict().items()]
    replace_text(file, "\n".join(sections))


def options_without_effect(cfg: Config, options: dict) -> list[str]:
    """One line for each of the ``cfg_options`` that some stages ignore, because they have their own value.

    Raises ``ValueError`` if all stages ignore one."""
    stages = cfg.get("stages")
    dicts = {n: stage for n, stage in stages.items() if isinstance(stage, dict)} if isinstance(stages, dict) else {}
    lines = []
    for key, value in options.items():
        shadowed = [
            name
            for name, stage in dicts.items()
            if _sets(stage, key.split(".")) and f"stages.{name}.{key}" not in options
        ]
        if not shadowed:
            continue
        message = f"--cfg-options {key}={value!r} has no effect in {', '.join(shadowed)}: the config sets it there"
        example = f"stages.{shadowed[0]}.{key}"
        if len(shadowed) == len(stages):
            raise ValueError(f"{message}: name the stage, as in {example}={value!r}")
        lines.append(f"{message}. To change it, use {example}")
    return lines


def _sets(value, path: list[str]) -> bool:
    """Whether a stage's overrides replace the value at ``path``. A section that is None in the stage does not count."""
    for key in path:
        if value is None:
            return False
        if not isinstance(value, dict) or value.get(DELETE):
            return True
        if key not in value:
            return False
        value = value[key]
    return not isinstance(value, dict) or bool(value.get(DELETE))


def stage_config(cfg: Config, name: str) -> Config:
    """The config that one stage runs with: the stage's entries merged over the sections of the config.

    They are merged as MMEngine merges a file over its ``_base_``: dicts key by key, everything else is replaced, and a
    dict with ``_delete_=True`` is replaced too. The result has no ``stages``; it has the stage's ``train`` instead.
    """
    if name not in cfg.get("stages", {}):
        raise ValueError(f"the config has no stage {name!r}: expected one of {list(cfg.get('stages', {}))}")
    stage = copy.deepcopy(cfg)
    overrides = stage.pop("stages")[name]
    if (why := misfit(stage._cfg_dict, overrides)) is not None:
        raise ValueError(f"stages.{name}: {why}")
    stage.merge_from_dict(overrides)
    _drop_marks(stage._cfg_dict)
    return stage


def is_model_folder(init: str) -> bool:
    """Whether an ``init`` is a saved model on this machine: a folder of `asvr.pretrained.Pretrained.save_pretrained`,
    or a model of the Hub that is already downloaded."""
    return local_model(init) is not None


def distinct(configs: list) -> list:
    """The configs without duplicates, in order. (Configs are not hashable.)"""
    return [config for i, config in enumerate(configs) if config not in configs[:i]]


def _drop_marks(value) -> None:
    """Remove each ``_delete_`` that is left. MMEngine keeps it in a dict that had nothing to replace."""
    if isinstance(value, dict):
        value.pop(DELETE, None)
        for item in value.values():
            _drop_marks(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _drop_marks(item)


def import_custom(custom_imports: dict) -> None:
    """Import the modules that a config names, also from the current directory. Raises ``ValueError`` if that fails."""
    here = os.getcwd()
    if here not in sys.path:  # `python tools/train.py` puts tools/ there, not the current directory
        sys.path.insert(0, here)
    if f"{EXAMPLES}." in str(custom_imports) and str(home()) not in sys.path:  # the modules of recipes
        sys.path.append(str(home()))
    try:
        import_modules_from_strings(**custom_imports)
    except (ImportError, TypeError) as error:
        cause = f" ({error.__context__})" if error.__context__ else ""
        raise ValueError(
            f"custom_imports: {error}{cause}; expected dict(imports=['module', ...]), with modules that are installed "
            f"or in {here}: start the command in the folder of the module's file, or put that folder on PYTHONPATH"
        ) from error
