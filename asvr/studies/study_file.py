"""A study: several arms of one config, each trained with several seeds and asked the same questions.

A study is a Python file::

  config = '../scenes_mini.py'   the settings that all arms share
  seeds = [0, 1, 2]
  baseline = 'none'              the arm that all others are compared with
  groups = dict(ocr=['word'])    optional: kinds of question by group
  decides = [('both', 'none')]   optional: the pairs of arms that decide, over all questions
  compare = [('both', 'pixel')]  optional: further pairs of arms; the second is subtracted from the first
  tokenizers = dict(pixel='../tokenizers/pixel_scenes.py')   optional: trained first, shared by all arms
  shared = dict(words='_base_words.py')   optional: trained once; all arms and seeds can start from its model
  arms = dict(none=dict(model=dict(reconstruction=[])), ...)   an arm is a dict of changes to the config,
      viral='../targets/scenes/viral.py'                  or a config of its own that differs only in its model,
      ross=dict(config='../targets/scenes/ross.py', ...)  or such a config with changes
      few=dict(seeds=[0, 1], ...)                         any of these with fewer seeds than the study

``asvr::NAME`` in place of a path is a recipe of the library. An entry of ``shared`` is given as an arm is, and its
config may differ in everything. In the changes of an arm, ``study:NAME`` stands for the folder of a tokenizer of the
study; as ``init`` of a stage, for the folder of a shared model. Names that begin with ``_`` are ignored.
"""

from pathlib import Path

from mmengine.config import Config, ConfigDict

from asvr.base.recipes import config_file, recipe_file
from asvr.base.text import nearest
from asvr.recipe.config import SCRATCH, import_custom, load_config
from asvr.recipe.config_file import read_config_file
from asvr.recipe.recipe import Recipe
from asvr.recipe.validate import check_config
from asvr.registry import SCOPE
from asvr.studies.study_fields import MARK, OWN_CONFIG, OWN_SEEDS, is_start, problems_of, starts_of

IMPORTS = "custom_imports"
SHARED, MODEL = "shared", "model"  # folders: of all shared trainings, and of the saved model in one of them


def load_study(file: str | Path) -> Config:
    """Read a study, and check all that can be checked before a run.

    file: a path, or the name of a study that ships with the library. Raises ``ValueError`` with every problem of its
    fields, or of the config of an arm or a shared training.
    """
    file = config_file(file, "study")
    read = read_config_file(file)
    study = Config({key: value for key, value in read.to_dict().items() if not key.startswith("_")})
    if problems := problems_of(ConfigDict(study.to_dict())):
        raise ValueError(_listing(file, problems))
    study.config = _path(study.config, file.parent)
    study.tokenizers = {name: _path(path, file.parent) for name, path in study.get("tokenizers", {}).items()}
    study.arms = {arm: _arm(own, file.parent) for arm, own in study.arms.items()}
    study.shared = {name: _arm(own, file.parent) for name, own in study.get("shared", {}).items()}
    for name, own in study.shared.items():
        _check(file, f"shared {name!r}", lambda name=name: shared_config(study, name, file.parent), own)
    for arm, own in study.arms.items():
        _check(file, f"arm {arm!r}", lambda arm=arm: arm_config(study, arm, study.seeds[0], file.parent), own)
    if problems := _wrong_kinds(study, file.parent):
        raise ValueError(_listing(file, problems))
    return study


def _check(file: Path, what: str, make, own: dict) -> None:
    """Check the config of an arm or a shared training, whose models to start from may not exist yet."""
    try:
        cfg = make()
        for stage in starts_of(own):
            cfg.stages[stage].init = SCRATCH
        check_config(cfg)
    except ValueError as error:
        raise ValueError(f"{file}, {what}: {error}") from error


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
    changes = {key: value for key, value in study.arms[arm].to_dict().items() if key != OWN_SEEDS}
    cfg = _changed(study, changes, out, only_model=True)
    cfg.merge_from_dict(dict(runtime=dict(seed=seed), data=dict(cache_dir=str(out / "cache"))))
    return cfg


def shared_config(study: Config, name: str, out: Path) -> Config:
    """The config of a shared training, as `arm_config` makes it. Its seed is its own."""
    cfg = _changed(study, study.shared[name].to_dict(), out, only_model=False)
    cfg.merge_from_dict(dict(data=dict(cache_dir=str(out / "cache"))))
    return cfg


def shared_folder(out: Path, name: str) -> Path:
    """The work dir of a shared training."""
    return out / SHARED / name


def _changed(study: Config, changes: dict, out: Path, *, only_model: bool) -> Config:
    """The study's config, or a config of one's own, with changes. only_model: it may differ only in its model."""
    file, added = changes.pop(OWN_CONFIG, study.config), changes.pop(IMPORTS, None)
    cfg = load_config(file)
    if file != study.config:
        base = load_config(study.config)
        if only_model and (other := _other_sections(cfg, base)):
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
    try:
        cfg.merge_from_dict(_in_folders(changes, out))
    except (KeyError, TypeError) as error:
        raise ValueError(f"does not fit {file}: {error}") from error
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


def _in_folders(value, out: Path, place: tuple[str, ...] = ()):
    """``value`` with folders in place of each ``study:NAME``."""
    if isinstance(value, dict):
        return {key: _in_folders(item, out, (*place, str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_in_folders(item, out, (*place, str(i))) for i, item in enumerate(value)]
    if isinstance(value, str) and value.startswith(MARK):
        name = value.removeprefix(MARK)
        folder = shared_folder(out, name) / MODEL if is_start(place) else out / "tokenizers" / name / "tokenizer"
        return str(folder.absolute())
    return value
