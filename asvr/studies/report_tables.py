"""The tables of a study's report."""

from asvr.base.text import table
from asvr.studies.comparison import ALL
from asvr.studies.significance import Difference

ADVICE = "Ask easier or harder questions, train for more steps, or add questions or seeds."
STEADY = 6  # seeds; with fewer, intervals at a high level miss the truth too often (tests/studies/test_significance.py)


def pairs_of(result: dict) -> dict[str, dict]:
    return {f"{pair['first']} minus {pair['second']}": pair["groups"] for pair in result["pairs"]}


def markdown(result: dict) -> str:
    """The tables."""
    names = list(result["questions"])
    kinds = list(result["arms"][result["baseline"]]["kinds"])
    by_kind = [[arm, *(f"{100 * found['kinds'][kind]:.1f}" for kind in kinds)] for arm, found in result["arms"].items()]
    pairs = pairs_of(result)
    return "\n".join(
        [
            *_decisive(result),
            *_accuracy(result, names),
            *_differences(result, names),
            *(["Differences between other pairs of arms.", "", table(["arms", *names], _rows(pairs))] if pairs else []),
            *_no_interval(pairs),
            *_least(result["detectable"], len(result["arms"][result["baseline"]]["seeds"])),
            "Right answers in % by kind of question.",
            "",
            table(["arm", *kinds], by_kind),
            *_numbers(result),
        ]
    )


def _decisive(result: dict) -> list[str]:
    """The pairs that the study named as those that decide."""
    pairs, level = result["decides"], f"{100 * result['level']:.4g}"
    if not pairs:
        return []
    complete = all(pair["seeds"] == pair["planned"] for pair in pairs)
    rows = [
        [
            f"{pair['first']} minus {pair['second']}",
            f"{len(pair['seeds'])} of {len(pair['planned'])}",
            _cell(pair["groups"][ALL]) if pair["seeds"] else "not run",
            "-" if pair["detectable"] is None else f"{100 * pair['detectable']:.1f}",
        ]
        for pair in pairs
    ]
    fewest = min(len(pair["planned"]) for pair in pairs)
    chance = "about 5 %" if fewest >= STEADY else f"5 % or more, as a pair has fewer than {STEADY} seeds"
    meaning = (
        f"The chance that any of them excludes zero without an effect is {chance}."
        if complete
        else "**Runs are missing, so nothing is decided yet.**"
    )
    return [
        f"**The comparisons that decide**, over all questions: difference in percentage points, {level} % confidence "
        "interval, and p of McNemar's test. `least`: the difference that four of five such studies would find at this "
        f"level, from the runs of the baseline. {meaning} All other tables have 95 % intervals, and they only suggest "
        "what to test next.",
        "",
        table(["arms", "seeds", ALL, "least"], rows),
        *_no_interval(
            {row[0]: {ALL: own["groups"][ALL]} for row, own in zip(rows, pairs, strict=True) if own["seeds"]}
        ),
    ]


def _accuracy(result: dict, names: list[str]) -> list[str]:
    rows, seeds = [], len(result["seeds"])
    partial = any(found["seeds"] != result["seeds"] for found in result["arms"].values())
    for arm, found in result["arms"].items():
        codes = "; ".join(
            f"{name} {' / '.join(f'{100 * value:.0f}' for value in values)}" for name, values in found["codes"].items()
        )
        shares = [f"{100 * found['groups'][name]['share']:.1f}" for name in names]
        own_seeds = [", ".join(map(str, found["seeds"]))] if partial else []
        rows.append([arm, *own_seeds, *shares, f"{found['loss']:.3f}", codes or "-", f"{found['seconds']:.0f}"])
    measured = ["loss of answers, nats per token", "codes right by depth, %", "seconds of training"]
    mean = "mean over the seeds of the arm" if partial else f"mean of {seeds} seeds" if seeds > 1 else "one seed"
    return [
        f"Right answers in %, {mean}.",
        "",
        table(["arm", *(["seeds"] if partial else []), *names, *measured], rows),
    ]


def _differences(result: dict, names: list[str]) -> list[str]:
    others = {arm: own["groups"] for arm, own in result["arms"].items() if arm != result["baseline"]}
    alone = [f"`{arm}`" for arm in others if len(result["arms"][arm]["seeds"]) == 1]
    covered = "The interval covers other scenes and other seeds."
    if alone:
        of = "" if len(alone) == len(others) else f" of {', '.join(alone)}"
        covered = f"The interval{of} covers other scenes. It does not cover other seeds, because there is only one."
    return [
        f"Difference from {result['baseline']!r} in percentage points: mean, 95 % confidence interval, and p of "
        f"McNemar's test. Both arms have the same seeds and questions. {covered} If an interval includes zero, the "
        "study has not shown a difference. The test treats the questions of all seeds as independent, so its p is too "
        "small if seeds differ.",
        "",
        table(["arm", *names], _rows(others)) if others else "There is no other arm.\n",
        *_no_interval(others),
    ]


def _numbers(result: dict) -> list[str]:
    """Other numbers of targets and metrics, if an arm has any."""
    names = list(dict.fromkeys(name for own in result["arms"].values() for name in own["numbers"]))
    if not names:
        return []
    rows = [[arm, *(_number(own["numbers"].get(name)) for name in names)] for arm, own in result["arms"].items()]
    return ["Other numbers of targets and metrics, means over seeds.", "", table(["arm", *names], rows)]


def _number(value: float | list[float] | None) -> str:
    if value is None:
        return "-"
    return " / ".join(f"{number:.4g}" for number in (value if isinstance(value, list) else [value]))


def _rows(compared: dict[str, dict]) -> list[list[str]]:
    return [[name, *map(_cell, groups.values())] for name, groups in compared.items()]


def _cell(found: dict) -> str:
    p = "-" if found["p"] is None else f"{found['p']:.2g}"
    return f"{Difference(found['gain'], found['low'], found['high'])}, p {p}"


def _no_interval(compared: dict[str, dict]) -> list[str]:
    """A paragraph on the differences that have no interval. compared: the groups of each row of a table."""
    places = [
        f"{name} ({_named(without, groups)})"
        for name, groups in compared.items()
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


def _named(groups: list[str], known: dict) -> str:
    return "all groups" if len(groups) == len(known) > 1 else ", ".join(groups)


def _least(detectable: list[dict], seeds: int) -> list[str]:
    """The smallest differences that such a study finds, by number of seeds."""
    if seeds < 2:
        return ["With one seed of the baseline the smallest difference that a study finds is unknown. Add seeds.", ""]
    rows = [
        [str(own["seeds"]), *("-" if value is None else f"{100 * value:.1f}" for value in own["groups"].values())]
        for own in detectable
    ]
    groups = detectable[0]["groups"]
    lines = [
        "The smallest difference in percentage points that four of five studies of this size would find, by the number "
        f"of seeds of both arms. It is estimated from the {seeds} runs of the baseline.",
        "",
        table(["seeds", *groups], rows),
    ]
    if unknown := [name for name, value in groups.items() if value is None]:
        why = "no spread, so it cannot be estimated: the seeds of the baseline agree in"
        return [*lines, f"`-`: {why} {_named(unknown, groups)}. {ADVICE}", ""]
    return lines
