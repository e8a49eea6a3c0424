"""The report of a study: tables, a radar plot over groups of questions, and learning curves."""

import json
from pathlib import Path

from mmengine.config import Config

from asvr.base.plots import optional
from asvr.base.text import table
from asvr.studies.comparison import compare
from asvr.studies.plots import draw_curves, draw_groups
from asvr.studies.significance import Difference

ADVICE = "Ask easier or harder questions, train for more steps, or add questions or seeds."


def write_report(study: Config, found: dict[str, list[dict]], out: Path) -> str:
    """Write ``report.json``, ``report.md``, ``radar.png`` and ``curves.png`` to ``out``, and return the text.

    found: see `asvr.studies.results.collect`.
    """
    result = compare(study, found)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = markdown(result)
    (out / "report.md").write_text(text, encoding="utf-8", errors="backslashreplace")
    with optional(out / "radar.png"):
        draw_groups(result, out / "radar.png")
    with optional(out / "curves.png"):
        draw_curves(found, out / "curves.png")
    return text


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
            *_no_interval([(arm, own["groups"]) for arm, own in result["arms"].items() if arm != result["baseline"]]),
            *(["Differences between other pairs of arms.", "", table(["arms", *names], pairs)] if pairs else []),
            *_no_interval([(pair["first"] + " minus " + pair["second"], pair["groups"]) for pair in result["pairs"]]),
            *_least(result["detectable"], seeds),
            "Right answers in % by kind of question.",
            "",
            table(["arm", *kinds], by_kind),
        ]
    )


def _cells(groups: dict, names: list[str]) -> list[str]:
    return [_cell(groups[name]) for name in names]


def _cell(found: dict) -> str:
    p = "-" if found["p"] is None else f"{found['p']:.2g}"
    return f"{Difference(found['gain'], found['low'], found['high'])}, p {p}"


def _no_interval(compared: list[tuple[str, dict]]) -> list[str]:
    """A paragraph on the differences that have no interval. compared: a name and the groups of each row."""
    places = [
        f"{name} ({', '.join(without)})"
        for name, groups in compared
        if (without := [group for group, found in groups.items() if found["low"] is None])
    ]
    if not places:
        return []
    return [
        f"`-`: no spread, so the interval cannot be estimated: {'; '.join(places)}. The difference is the same in "
        "every scene and with every seed there, for example because all answers are wrong (0 %) or all are right "
        f"(100 %). This does not show that the arms are equal. {ADVICE}",
        "",
    ]


def _least(detectable: dict, seeds: int) -> list[str]:
    """The smallest differences that such a study finds."""
    shown = [f"{100 * value:.1f}" if value is not None else "-" for value in detectable.values()]
    lines = [
        "The smallest difference in percentage points that four of five studies of this size would find. It is "
        "estimated from the runs of the baseline.",
        "",
        table(list(detectable), [shown]),
    ]
    if seeds < 2:
        return [*lines, "`-`: with one seed of the baseline it cannot be estimated. Add seeds.", ""]
    if unknown := [name for name, value in detectable.items() if value is None]:
        why = f"`-`: no spread, so it cannot be estimated: the seeds of the baseline agree in {', '.join(unknown)}."
        return [*lines, f"{why} {ADVICE}", ""]
    return lines
