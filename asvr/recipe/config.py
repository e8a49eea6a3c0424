"""Loading a config file, and the config of one of its stages."""

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
from asvr.base.recipes import EXAMPLES, config_file, home
from asvr.recipe.config_file import DELETE, assigns, misfit, read_config_file
from asvr.registry import SCOPE

MODEL_FILE = "asvr.json"
PUBLISHED = "published"
SCRATCH = "scratch"  # an `init`: the stage starts from the weights that the config names


def load_config(path: str | Path, cfg_options: dict | None = None) -> Config:
    """Read a config file, apply ``cfg_options`` (dotted keys; a number picks an entry of a list) and import its
    ``custom_imports``, looked up from the current directory too. The library's own components register when
    the first of a kind is asked for.

    path: a file, or the name of a recipe, see `asvr.base.recipes.config_file`.

    Raises ``ValueError`` naming the file that is missing, or the option or module that does not fit.
    """
    path = config_file(path)
    if path.suffix != ".py":
        raise ValueError(f"{path} is no config, which is a Python file (.py)")
    cfg = read_config_file(path)
    if PUBLISHED in cfg and not assigns(path, PUBLISHED):
        cfg.pop(PUBLISHED)  # figures of a base are not those of what derives from it
    for key, value in (cfg_options or {}).items():
        if (why := misfit(cfg._cfg_dict, _nested(key, value))) is not None:
            raise ValueError(f"--cfg-options {key}={value!r} does not fit {path}: {why}")
        cfg.merge_from_dict({key: value})
    _check_options(cfg, cfg_options or {})
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
    """Write a config as a file that `load_config` reads. MMEngine's own dump sorts keys, and so would the stages run
    in another order."""
    sections = [f"{key} = {pprint.pformat(v, width=110, sort_dicts=False)}\n" for key, v in cfg.to_dict().items()]
    replace_text(file, "\n".join(sections))


def _check_options(cfg: Config, options: dict) -> None:
    """Tell of an option that stages replace by their own value: an error where all of them do, else a warning."""
    stages = cfg.get("stages")
    dicts = {n: stage for n, stage in stages.items() if isinstance(stage, dict)} if isinstance(stages, dict) else {}
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
            raise ValueError(f"{message}: name the stage, {example}={value!r}")
        logging.getLogger("asvr").warning("%s (%s would)", message, example)


def _sets(value, path: list[str]) -> bool:
    """Whether a stage's overrides replace what stands at ``path``. What a stage switches off (None) it does not."""
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
    """The config that a stage runs with: its entries merged over the rest, as MMEngine merges a file over its
    ``_base_`` (dicts deeply, all else replaced, ``_delete_=True`` replaces a dict as well).

    Instead of ``stages`` it holds the stage's ``train``, the components that are trained.
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
    """Whether an ``init`` is a folder that `asvr.pretrained.Pretrained.save_pretrained` wrote."""
    return (Path(init) / MODEL_FILE).is_file()


def distinct(configs: list) -> list:
    """Each once, in order; configs are not hashable."""
    return [config for i, config in enumerate(configs) if config not in configs[:i]]


def _drop_marks(value) -> None:
    """MMEngine leaves ``_delete_`` in a dict that had nothing to replace."""
    if isinstance(value, dict):
        value.pop(DELETE, None)
        for item in value.values():
            _drop_marks(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _drop_marks(item)


def import_custom(custom_imports: dict) -> None:
    """Import a config's modules, looked up from the current directory too; ``ValueError`` where that fails."""
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
            f"custom_imports: {error}{cause}; expected dict(imports=['module', ...]), "
            f"with modules that are installed or found from {here}"
        ) from error
