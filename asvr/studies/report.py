"""The report of a study: tables, a radar plot over groups of questions, and learning curves.

Legend: ``R`` runs of an arm (one for each seed), ``Q`` questions.
"""

import json
from pathlib import Path

import numpy as np
from mmengine.config import Config

from asvr.base.plots import optional, plain, scale_by_logarithm
from asvr.base.text import table
from asvr.studies.significance import detectable, mcnemar, paired_bootstrap

ALL = "all"


def write_report(study: Config, found: dict[str, list[dict]], out: Path) -> str:
    """Write ``report.json``, ``report.md``, ``radar.png`` and ``curves.png`` to ``out``, and return the text.

    found: see `asvr.studies.run.collect`.
    """
    result = compare(study, found)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = markdown(result)
    (out / "report.md").write_text(text, encoding="utf-8", errors="backslashreplace")
    with optional(out / "radar.png"):
        _radar(result, out / "radar.png")
    with optional(out / "curves.png"):
        _curves(found, out / "curves.png")
    return text


def asked_groups(study: Config, found: dict[str, list[dict]]) -> Config:
    """The study with only those groups and kinds that were asked. Questions from elsewhere may have fewer kinds."""
    kinds = {answer["kind"] for answer in found[study.baseline][0]["answers"]}
    groups = {name: [kind for kind in own if kind in kinds] for name, own in study.get("groups", {}).items()}
    return Config(dict(study.to_dict(), groups={name: own for name, own in groups.items() if own}))


def compare(study: Config, found: dict[str, list[dict]]) -> dict:
    """The share of right answers by arm and group, and its difference from the baseline. ``all`` is one of the groups.

    Every question has the same weight. Raises ``ValueError`` if a group names a kind that was not asked.
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
    base_RQ = right[study.baseline]
    arms = {}
    for arm, right_RQ in right.items():
        by_group = {}
        for name, of in members.items():
            by_group[name] = dict(share=float(right_RQ[:, of].mean()), by_seed=right_RQ[:, of].mean(1).tolist())
            if arm != study.baseline:
                by_group[name] |= _gain(right_RQ[:, of], base_RQ[:, of], scenes_Q[of])
        seconds = float(np.mean([run["seconds"] for run in found[arm]]))
        codes = {
            name: np.mean([run["codes"][name] for run in found[arm]], 0).tolist() for name in found[arm][0]["codes"]
        }
        loss = float(np.mean([run["losses"]["text"] for run in found[arm]]))
        kinds = {kind: float(right_RQ[:, kinds_Q == kind].mean()) for kind in _kinds(groups)}
        arms[arm] = dict(groups=by_group, kinds=kinds, seconds=seconds, codes=codes, loss=loss)
    several = len(base_RQ) > 1
    return dict(
        baseline=study.baseline,
        seeds=list(study.seeds),
        questions={name: int(of.sum()) for name, of in members.items()},
        scenes=len(set(scenes_Q)),
        left_out=sorted(set(kinds_Q[~members[ALL]])),
        detectable={n: detectable(base_RQ[:, of]) if several else None for n, of in members.items()},
        arms=arms,
        pairs=[
            dict(
                first=a,
                second=b,
                groups={n: _gain(right[a][:, of], right[b][:, of], scenes_Q[of]) for n, of in members.items()},
            )
            for a, b in study.get("compare", [])
            if a in right and b in right
        ],
    )


def _gain(right_RQ: np.ndarray, other_RQ: np.ndarray, scenes_Q: np.ndarray) -> dict:
    gain = paired_bootstrap(right_RQ, other_RQ, scenes_Q)
    return dict(gain=gain.mean, low=gain.low, high=gain.high, p=mcnemar(right_RQ, other_RQ))


def _kinds(groups: dict) -> list[str]:
    return list(dict.fromkeys(kind for kinds in groups.values() for kind in kinds))


def markdown(result: dict) -> str:
    names, seeds = list(result["questions"]), len(result["seeds"])
    covered = (
        "It covers other scenes and other seeds."
        if seeds > 1
        else "It covers other scenes. It does not cover other seeds, because there is only one."
    )
    rows, gains = [], []
    for arm, found in result["arms"].items():
        groups = found["groups"]
        codes = "; ".join(
            f"{name} {' / '.join(f'{100 * value:.0f}' for value in values)}" for name, values in found["codes"].items()
        )
        shares = [f"{100 * groups[name]['share']:.1f}" for name in names]
        rows.append([arm, *shares, f"{found['loss']:.3f}", codes or "-", f"{found['seconds']:.0f}"])
        if arm != result["baseline"]:
            gains.append([arm, *_cells(groups, names)])
    pairs = [[f"{pair['first']} minus {pair['second']}", *_cells(pair["groups"], names)] for pair in result["pairs"]]
    least = [f"{100 * value:.1f}" if value is not None else "-" for value in result["detectable"].values()]
    asked = ", ".join(f"{name} {count}" for name, count in result["questions"].items())
    kinds = list(result["arms"][result["baseline"]]["kinds"])
    by_kind = [[arm, *(f"{100 * found['kinds'][kind]:.1f}" for kind in kinds)] for arm, found in result["arms"].items()]
    return "\n".join(
        [
            f"Right answers in %, {f'mean of {seeds} seeds' if seeds > 1 else 'one seed'}. Scenes: {result['scenes']}. "
            f"Questions: {asked}.",
            *(
                [f"These kinds are in no group and are left out: {', '.join(result['left_out'])}."]
                * bool(result["left_out"])
            ),
            "",
            table(
                ["arm", *names, "loss of answers, nats per token", "codes right by depth, %", "seconds of training"],
                rows,
            ),
            f"Difference from {result['baseline']!r} in percentage points: mean, 95 % confidence interval, and p of "
            f"McNemar's test. {covered.replace('It', 'The interval', 1)} If an interval includes zero, the study has "
            "not shown a difference. The test treats the questions of all seeds as independent, so its p is too small "
            "if seeds differ.",
            "",
            table(["arm", *names], gains) if gains else "There is no other arm.\n",
            *(["Differences between other pairs of arms.", "", table(["arms", *names], pairs)] if pairs else []),
            "The smallest difference in percentage points that four of five studies of this size would find. It is "
            "estimated from the runs of the baseline.",
            "",
            table(names, [least]),
            "Right answers in % by kind of question.",
            "",
            table(["arm", *kinds], by_kind),
        ]
    )


def _cells(groups: dict, names: list[str]) -> list[str]:
    return [
        f"{100 * g['gain']:+.1f} ({100 * g['low']:+.1f} to {100 * g['high']:+.1f}), p {g['p']:.2g}"
        for g in (groups[name] for name in names)
    ]


def _plt():
    import matplotlib  # here: it takes a second to import

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _radar(result: dict, file: Path) -> None:
    plt = _plt()
    names = [name for name in result["questions"] if name != ALL]
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    figure, axis = plt.subplots(figsize=(7, 6), subplot_kw=dict(polar=True), layout="constrained")
    for arm, found in result["arms"].items():
        shares = [100 * found["groups"][name]["share"] for name in names]
        style = dict(linewidth=2.5, color="black") if arm == result["baseline"] else dict(linewidth=1.3)
        axis.plot([*angles, angles[0]], [*shares, shares[0]], label=plain(arm), **style)
    axis.set_xticks(angles, [plain(name) for name in names])
    axis.set_ylim(0, 100)
    axis.set_title("right answers, %")
    axis.legend(loc="upper left", bbox_to_anchor=(1.05, 1.05), fontsize=8, frameon=False)
    figure.savefig(file, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _curves(found: dict[str, list[dict]], file: Path) -> None:
    """Plot the text loss and the first target's code accuracy over the steps of the last stage, as means over seeds."""
    plt = _plt()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for arm, runs in found.items():
        lines = [_last_stage(Path(run["work_dir"]) / "metrics.jsonl") for run in runs]
        steps = [line["step"] for line in lines[0]]
        left.plot(
            steps,
            np.mean([[line.get("loss_text", np.nan) for line in own] for own in lines], 0),
            label=plain(arm),
            linewidth=1.2,
        )
        keys = [key for key in lines[0][-1] if key.startswith("acc_") and isinstance(lines[0][-1][key], list)]
        if keys:
            values = np.mean([[np.mean(line.get(keys[0], np.nan)) for line in own] for own in lines], 0)
            right.plot(steps, 100 * values, label=plain(f"{arm}: {keys[0][4:]}"), linewidth=1.2)
    left.set(xlabel="step", ylabel="text loss, nats per token")
    scale_by_logarithm(left)
    right.set(xlabel="step", ylabel="codes predicted right, %", ylim=(0, 100))
    for axis in (left, right):
        if axis.lines:
            axis.legend(fontsize=8, frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _last_stage(file: Path) -> list[dict]:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["stage"] == lines[-1]["stage"]]
