"""Compares the arms of a study by group of questions.

Legend: ``R`` runs of an arm (one for each seed), ``Q`` questions.
"""

import json

import numpy as np
from mmengine.config import Config

from asvr.studies.significance import LEVEL, detectable, mcnemar, paired_bootstrap
from asvr.studies.study_fields import seeds_of

ALL = "all"


def asked_groups(study: Config, found: dict[str, list[dict]]) -> Config:
    """The study with only those groups and kinds that were asked. Questions from elsewhere may have fewer kinds."""
    kinds = {answer["kind"] for answer in found[study.baseline][0]["answers"]}
    groups = {name: [kind for kind in own if kind in kinds] for name, own in study.get("groups", {}).items()}
    pairs = [*study.get("decides", []), *study.get("compare", [])]  # no other questions decide
    return Config(dict(study.to_dict(), groups={n: own for n, own in groups.items() if own}, decides=[], compare=pairs))


def compare(study: Config, found: dict[str, list[dict]]) -> dict:
    """The share of right answers by arm and group, and its difference from the baseline. ``all`` is one of the groups.

    Every question has the same weight. Two arms are compared over the seeds that both have. The k pairs that decide
    have intervals at the ``level`` 1 - 0.05 / k. Raises ``ValueError`` if a group names a kind that was not asked.
    """
    answers = found[study.baseline][0]["answers"]
    kinds_Q = np.array([answer["kind"] for answer in answers])
    groups = study.get("groups") or {kind: [kind] for kind in sorted(set(kinds_Q))}
    unknown = set(_kinds(groups)) - set(kinds_Q)
    if unknown:
        kinds = sorted(map(str, set(kinds_Q)))
        raise ValueError(f"groups: no question of kind {sorted(unknown)}; the kinds are {kinds}")
    scenes_Q = np.array([json.dumps(answer["image"] or answer["id"]) for answer in answers])
    members = {name: np.isin(kinds_Q, list(kinds)) for name, kinds in groups.items()}
    members[ALL] = np.isin(kinds_Q, _kinds(groups))
    right = {arm: np.array([[a["right"] for a in run["answers"]] for run in runs]) for arm, runs in found.items()}
    base_RQ, ran = right[study.baseline], {arm: [run["seed"] for run in runs] for arm, runs in found.items()}

    def gains(first: str, second: str, level: float = LEVEL) -> dict[str, dict]:
        """By group, over the seeds that both have."""
        seeds = _common(ran[first], ran[second])
        pair = [right[arm][[ran[arm].index(seed) for seed in seeds]] for arm in (first, second)]
        return {name: _gain(*(own[:, of] for own in pair), scenes_Q[of], level) for name, of in members.items()}

    def of_pair(a: str, b: str, level: float) -> dict:
        seeds = _common(ran.get(a, []), ran.get(b, []))
        planned = _common(seeds_of(study, a), seeds_of(study, b))
        return dict(first=a, second=b, seeds=seeds, planned=planned, groups=gains(a, b, level) if seeds else {})

    def least(seeds: int, level: float = LEVEL) -> dict[str, float | None]:
        known = len(base_RQ) > 1
        return {n: detectable(base_RQ[:, of], seeds=seeds, level=level) if known else None for n, of in members.items()}

    arms = {}
    for arm, right_RQ in right.items():
        by_group = {
            name: dict(share=float(right_RQ[:, of].mean()), by_seed=right_RQ[:, of].mean(1).tolist())
            for name, of in members.items()
        }
        if arm != study.baseline:
            from_baseline = gains(arm, study.baseline)
            by_group = {name: own | from_baseline[name] for name, own in by_group.items()}
        kinds = {kind: float(right_RQ[:, kinds_Q == kind].mean()) for kind in _kinds(groups)}
        arms[arm] = dict(groups=by_group, kinds=kinds, **_means(found[arm]))
    level = 1 - (1 - LEVEL) / max(1, len(study.get("decides", [])))  # Bonferroni
    decides = [of_pair(a, b, level) for a, b in study.get("decides", [])]
    for pair in decides:
        pair["detectable"] = least(len(pair["planned"]), level)[ALL] if len(pair["planned"]) > 1 else None
    sizes = {len(base_RQ), *(len(seeds_of(study, arm)) for arm in study.arms)}
    return dict(
        baseline=study.baseline,
        seeds=_common(study.seeds, ran[study.baseline]),
        questions={name: int(of.sum()) for name, of in members.items()},
        scenes=len(set(scenes_Q)),
        left_out=sorted(set(kinds_Q[~members[ALL]])),
        detectable=[dict(seeds=n, groups=least(n)) for n in sorted(sizes) if n > 1],
        level=level,
        decides=decides,
        arms=arms,
        pairs=[pair for a, b in study.get("compare", []) if (pair := of_pair(a, b, LEVEL))["seeds"]],
    )


def _common(first: list[int], second: list[int]) -> list[int]:
    return [seed for seed in first if seed in second]


def _means(runs: list[dict]) -> dict:
    """What an arm's runs have in common, and the means of what they measured."""
    codes = {name: np.mean([run["codes"][name] for run in runs], 0).tolist() for name in runs[0]["codes"]}
    return dict(
        seconds=float(np.mean([run["seconds"] for run in runs])),
        codes=codes,
        loss=float(np.mean([run["losses"]["text"] for run in runs])),
        seeds=[run["seed"] for run in runs],
        steps=runs[0]["steps"],
        numbers={name: np.mean([run["numbers"][name] for run in runs], 0).tolist() for name in runs[0]["numbers"]},
    )


def _gain(right_RQ: np.ndarray, other_RQ: np.ndarray, scenes_Q: np.ndarray, level: float) -> dict:
    """The difference with its interval and p. These are None if nothing spreads, or if no answer differs."""
    gain = paired_bootstrap(right_RQ, other_RQ, scenes_Q, level=level)
    p = mcnemar(right_RQ, other_RQ) if (right_RQ != other_RQ).any() else None
    return dict(gain=gain.mean, low=gain.low, high=gain.high, p=p)


def _kinds(groups: dict) -> list[str]:
    return list(dict.fromkeys(kind for kinds in groups.values() for kind in kinds))
