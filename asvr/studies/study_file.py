"""A study: several arms of one config, each trained with several seeds and asked the same questions.

A study is a Python file::

  config = '../scenes_mini.py'   the settings that all arms share
  seeds = [0, 1, 2]
  baseline = 'none'              the arm that all others are compared with
  groups = dict(ocr=['word'])    optional: kinds of question by group
  compare = [('both', 'pixel')]  optional: further pairs of arms; the second is subtracted from the first
  tokenizers = dict(pixel='../tokenizers/pixel_scenes.py')   optional: trained first, shared by all arms
  arms = dict(none=dict(model=dict(reconstruction=[])), ...)   an arm is a dict of changes to the config,
      viral='../targets/scenes/viral.py'                  or a config of its own that differs only in its model,
      ross=dict(config='../targets/scenes/ross.py', ...)  or such a config with changes

``asvr::NAME`` in place of a path is a recipe of the library. In an arm, ``study:NAME`` stands for the folder of a
tokenizer of the study. Names that begin with ``_`` are ignored.
"""

from pathlib import Path

from mmengine.config import Config

from asvr.base.recipes import config_file, recipe_file
from asvr.base.text import nearest
from asvr.recipe.config import import_custom, load_config
from asvr.recipe.config_file import read_config_file
from asvr.recipe.recipe import Recipe
from asvr.recipe.validate import check_config
from asvr.registry import SCOPE

FIELDS = ("config", "seeds", "baseline", "groups", "compare", "tokenizers", "arms")
REQUIRED = ("config", "seeds", "baseline", "arms")
MARK = "study:"
IMPORTS = "custom_imports"
OWN_CONFIG = "config"  # the key of an arm that names its own config


def load_study(file: str | Path) -> Config:
    """Read a study, and check all that can be checked before a run.

    file: a path, or the name of a study that ships with the library. Raises ``ValueError`` with every problem of its
    fields, or of an arm's config.
    """
    file = config_file(file, "study")
    read = read_config_file(file)
    study = Config({key: value for key, value in read.to_dict().items() if not key.startswith("_")})
    problems = [f"{key}: unknown; {nearest(key, FIELDS)}" for key in study if key not in FIELDS]
    problems += [f"{key} is missing" for key in REQUIRED if key not in study]
    if not problems and study.baseline not in study.arms:
        problems.append(f"baseline={study.baseline!r}: no such arm; {nearest(study.baseline, list(study.arms))}")
    if not problems:
        unknown = [arm for pair in study.get("compare", []) for arm in pair if arm not in study.arms]
        problems += [f"compare: no arm {arm!r}; {nearest(arm, list(study.arms))}" for arm in unknown]
        problems += [f"compare: {pair}: expected two arms" for pair in study.get("compare", []) if len(pair) != 2]
    if not problems and (not study.seeds or len(set(study.seeds)) != len(study.seeds)):
        problems.append(f"seeds={list(study.seeds)}: expected different numbers")
    if problems:
        raise ValueError(_listing(file, problems))
    if wrong := [arm for arm, own in study.arms.items() if not _is_arm(own)]:
        expected = "expected a dict of changes, the path of a config, or dict(config='PATH', ...)"
        raise ValueError(_listing(file, [f"arms.{arm}={study.arms[arm]!r}: {expected}" for arm in wrong]))
    study.config = _path(study.config, file.parent)
    study.tokenizers = {name: _path(path, file.parent) for name, path in study.get("tokenizers", {}).items()}
    study.arms = {arm: _arm(own, file.parent) for arm, own in study.arms.items()}
    for arm in study.arms:
        try:
            check_config(arm_config(study, arm, study.seeds[0], file.parent))
        except ValueError as error:
            raise ValueError(f"{file}, arm {arm!r}: {error}") from error
    if problems := _wrong_kinds(study, file.parent):
        raise ValueError(_listing(file, problems))
    return study


def _listing(file: Path, problems: list[str]) -> str:
    return f"{file}:\n" + "\n".join(f"- {problem}" for problem in problems)


def _wrong_kinds(study: Config, out: Path) -> list[str]:
    """Problems of ``groups``, if the config of the questions lists its kinds."""
    evaluation = Recipe(arm_config(study, study.baseline, study.seeds[0], out)).last.evaluation
    if not evaluation:
        return [f"config: the last stage of {study.config} has no `evaluation`; a study needs questions"]
    asked = evaluation.dataset.get("kinds")
    grouped = {kind for kinds in (study.get("groups") or {}).values() for kind in kinds}
    return [
        f"groups: no question of kind {k!r}; {nearest(k, asked)}" for k in sorted(grouped) if asked and k not in asked
    ]


def arm_config(study: Config, arm: str, seed: int, out: Path) -> Config:
    """The config that ``asvr train`` would run. Its modules are imported: those of the study's config and of the arm.

    Raises ``ValueError`` if the arm has a config of its own that differs from the study's in more than its model and
    these modules."""
    changes = study.arms[arm].to_dict()
    file, added = changes.pop(OWN_CONFIG, study.config), changes.pop(IMPORTS, None)
    cfg = load_config(file)
    if file != study.config:
        base = load_config(study.config)
        if other := _other_sections(cfg, base):
            raise ValueError(
                f"{file} differs from {study.config} in {', '.join(other)}: an arm's config may differ only in its "
                "model. To set something else, give the same change to every arm, as in dict(config='PATH', "
                "schedule=dict(steps=100))"
            )
        _join_imports(cfg, base.get(IMPORTS), cfg.get(IMPORTS))
    if added is not None:
        if not isinstance(added, dict):
            raise ValueError(f"{IMPORTS}={added!r}: expected dict(imports=['module', ...])")
        _join_imports(cfg, cfg.get(IMPORTS), added)
        import_custom(cfg[IMPORTS])
    folders = {name: out / "tokenizers" / name / "tokenizer" for name in study.tokenizers}
    try:
        cfg.merge_from_dict(_named(changes, folders))
    except (KeyError, TypeError) as error:
        raise ValueError(f"does not fit {file}: {error}") from error
    cfg.merge_from_dict(dict(runtime=dict(seed=seed), data=dict(cache_dir=str(out / "cache"))))
    return cfg


def _join_imports(cfg: Config, *given: dict | None) -> None:
    """Set ``custom_imports`` to the modules of several such fields, without duplicates."""
    fields = [dict(own) for own in given if own is not None]
    if not fields:
        return
    lists = [own.pop("imports", []) for own in fields]
    modules = [name for own in lists for name in ([own] if isinstance(own, str) else own)]
    options = {key: value for own in fields for key, value in own.items()}
    cfg[IMPORTS] = dict(imports=list(dict.fromkeys(modules)), **options)


def _is_arm(own) -> bool:
    return isinstance(own, str) or (isinstance(own, dict) and isinstance(own.get(OWN_CONFIG, ""), str))


def _arm(own: Config | str, folder: Path) -> dict:
    """The changes of an arm, with the full path of its own config if it has one."""
    changes = {OWN_CONFIG: own} if isinstance(own, str) else own.to_dict()
    return {key: _path(value, folder) if key == OWN_CONFIG else value for key, value in changes.items()}


def _path(given: str, folder: Path) -> str:
    """The whole path of a config. ``asvr::NAME`` is a recipe of the library. Raises ``ValueError`` for one that is
    none."""
    scope, mark, name = given.partition("::")
    return str(recipe_file(name) if mark and scope == SCOPE else (folder / given).resolve())


def _other_sections(cfg: Config, other: Config) -> list[str]:
    """The keys in which two configs differ, besides their models and the modules that they import."""

    def sections(config: Config) -> dict:
        whole = config.to_dict()
        stages = whole.pop("stages", {})
        found = {f"stages.{name}": {k: v for k, v in stage.items() if k != "model"} for name, stage in stages.items()}
        return found | {key: value for key, value in whole.items() if key not in ("model", IMPORTS)}

    first, second = sections(cfg), sections(other)
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


def _named(value, folders: dict[str, Path]):
    """``value`` with folders in place of the names of the study's tokenizers."""
    if isinstance(value, dict):
        return {key: _named(item, folders) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_named(item, folders) for item in value]
    if isinstance(value, str) and value.startswith(MARK):
        name = value.removeprefix(MARK)
        if name not in folders:
            raise ValueError(f"{value!r}: the study has no tokenizer {name!r}; {nearest(name, list(folders))}")
        return str(folders[name].absolute())
    return value
