"""Checks the fields of a study's file, and the names of its own tokenizers and models that it uses."""

from collections.abc import Iterator

from mmengine.config import ConfigDict

from asvr.base.text import nearest
from asvr.recipe.fields import Field, check_fields, is_int

MARK = "study:"
OWN_CONFIG = "config"  # the key of an arm that names its own config
OWN_SEEDS = "seeds"  # the key of an arm that has fewer seeds than the study
TAKEN = ("cache", "questions", "shared", "tokenizers")  # folders of a study that are no arms


def _is_text(value) -> bool:
    return isinstance(value, str) and bool(value)


def _are_seeds(value) -> bool:
    if not isinstance(value, list | tuple | range) or not len(value):
        return False
    return all(is_int(seed) and seed >= 0 for seed in value) and len(set(value)) == len(value)


def _is_arm(own) -> bool:
    return isinstance(own, str) or (isinstance(own, dict) and isinstance(own.get(OWN_CONFIG, ""), str))


def _are_groups(value) -> bool:
    return value is None or (isinstance(value, dict) and all(isinstance(own, list | tuple) for own in value.values()))


def _are_pairs(value) -> bool:
    pairs = isinstance(value, list | tuple) and all(isinstance(pair, list | tuple) for pair in value)
    return pairs and all(len(pair) == 2 and all(map(_is_text, pair)) for pair in value)


def _is_dict(value) -> bool:
    return isinstance(value, dict)


CHANGED = "a dict of changes, the path of a config, or dict(config='PATH', ...)"
FIELDS = dict(
    config=Field("the path of a config", _is_text),
    seeds=Field("a list of different whole numbers, at least 0", _are_seeds),
    baseline=Field("the name of an arm", _is_text),
    groups=Field("dict(NAME=[kind, ...]) with kinds of question", _are_groups, default=None),
    decides=Field("a list of pairs of arms", _are_pairs, default=()),
    compare=Field("a list of pairs of arms", _are_pairs, default=()),
    tokenizers=Field("dict(NAME='PATH') with configs of visual tokenizers", _is_dict, default=()),
    shared=Field(f"dict(NAME=...), each {CHANGED}", _is_dict, default=()),
    arms=Field(f"dict(NAME=...), each {CHANGED}", lambda value: _is_dict(value) and bool(value)),
)
ARM = Field(CHANGED, _is_arm)
TOKENIZER = Field("the path of a visual tokenizer's config", _is_text)


def problems_of(study: ConfigDict) -> list[str]:
    """The problems of a study's fields, as they are in its file."""
    if problems := check_fields("", study, FIELDS):
        return problems
    for section, field in (("arms", ARM), ("shared", ARM), ("tokenizers", TOKENIZER)):
        own = study.get(section, {})
        problems += check_fields(section, own, dict.fromkeys(own, field))
    if study.baseline not in study.arms:
        problems.append(f"baseline={study.baseline!r}: expected an arm; {nearest(study.baseline, study.arms)}")
    for arm in study.arms:
        if arm in TAKEN:
            problems.append(f"arms.{arm}: expected another name: the study has its own folder of this name")
    wrong = [problem for arm, own in study.arms.items() for problem in _wrong_seeds(study, arm, own)]
    pairs = [problem for name in ("decides", "compare") for problem in _wrong_pairs(study, name)] if not wrong else []
    problems += [*wrong, *pairs]
    for name in study.get("shared", {}):
        if name in study.get("tokenizers", {}):
            problems.append(f"shared.{name}: expected another name: `tokenizers` has this one")
    return problems or list(_wrong_names(study))


def seeds_of(study: ConfigDict, arm: str) -> list[int]:
    """The seeds that an arm is trained with: all of the study, or its own."""
    own = study.arms[arm]
    return list(own.get(OWN_SEEDS, study.seeds) if isinstance(own, dict) else study.seeds)


def _wrong_seeds(study: ConfigDict, arm: str, own: dict | str) -> list[str]:
    if not isinstance(own, dict) or OWN_SEEDS not in own:
        return []
    seeds, place = own[OWN_SEEDS], f"arms.{arm}.{OWN_SEEDS}"
    if arm == study.baseline:
        return [f"{place}: the baseline has all seeds of the study, because all arms are compared with it"]
    if not _are_seeds(seeds) or not set(seeds) <= set(study.seeds):
        return [f"{place}={seeds!r}: expected some of the study's seeds {list(study.seeds)}"]
    return []


def _wrong_pairs(study: ConfigDict, name: str) -> Iterator[str]:
    known: list[set] = []
    for pair in study.get(name, []):
        place, unknown = f"{name}={list(pair)}", [arm for arm in pair if arm not in study.arms]
        if unknown:
            yield f"{place}: expected two arms, not {unknown[0]!r}; {nearest(unknown[0], study.arms)}"
        elif pair[0] == pair[1] or set(pair) in known:
            yield f"{place}: expected two different arms, and each pair once"
        elif not set(seeds_of(study, pair[0])) & set(seeds_of(study, pair[1])):
            yield f"{place}: these arms have no common seed"
        known.append(set(pair))


def uses(value, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the place and the name of each ``study:NAME`` in an arm."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from uses(item, (*place, str(key)))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from uses(item, (*place, str(i)))
    elif isinstance(value, str) and value.startswith(MARK):
        yield place, value.removeprefix(MARK)


def needed(study: ConfigDict, arms: list[str]) -> set[str]:
    """The names of the tokenizers and shared models that these arms use, themselves or by way of a shared model."""
    names: set[str] = set()
    waiting = [study.arms[arm] for arm in arms]
    while waiting:
        for _, name in uses(waiting.pop()):
            if name not in names:
                names.add(name)
                waiting += [study.shared[name]] if name in study.get("shared", {}) else []
    return names


def is_start(place: tuple[str, ...]) -> bool:
    """Whether a place in an arm is the ``init`` of a stage."""
    return len(place) == 3 and place[0] == "stages" and place[2] == "init"


def starts_of(own: dict) -> dict[str, str]:
    """Stage -> the shared model that it starts from. own: the changes of an arm, or of an entry of ``shared``."""
    return {place[1]: name for place, name in uses(own) if is_start(place)}


def _wrong_names(study: ConfigDict) -> Iterator[str]:
    """A problem for each ``study:NAME`` that names nothing, or the wrong kind of thing."""
    tokenizers, shared = list(study.get("tokenizers", {})), list(study.get("shared", {}))
    for section in ("shared", "arms"):
        for arm, own in study.get(section, {}).items():
            models = shared[: shared.index(arm)] if section == "shared" else shared
            for place, name in uses(own):
                known = models if is_start(place) else tokenizers
                if name not in known:
                    what = "a model of `shared`" if is_start(place) else "a visual tokenizer of `tokenizers`"
                    why = _why_not(name, known, tokenizers, shared, is_start(place))
                    yield f"{section}.{arm}.{'.'.join(place)}={MARK + name!r}: expected {what}; {why}"


def _why_not(name: str, known: list[str], tokenizers: list[str], shared: list[str], start: bool) -> str:
    if start and name in tokenizers:
        return f"{name!r} is a visual tokenizer"
    if start and name in shared:
        return f"{name!r} does not come before it"
    if name in shared:
        return f"{name!r} is a shared model, which only stages.NAME.init can name"
    return nearest(name, known)
