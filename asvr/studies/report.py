"""The report of a study: tables, a plot over groups of questions, and learning curves."""

import json
from datetime import date
from pathlib import Path

from mmengine.config import Config

import asvr
from asvr.base.plots import optional
from asvr.base.recipes import CONFIGS, home
from asvr.base.text import table
from asvr.registry import SCOPE
from asvr.studies.comparison import ALL, compare
from asvr.studies.plots import BARS, RADAR, draw_curves, draw_groups, groups_file
from asvr.studies.significance import Difference

ADVICE = "Ask easier or harder questions, train for more steps, or add questions or seeds."
ENOUGH = 3  # seeds; the interval of two is too unsteady, see tests/studies/test_significance.py


def write_report(
    study: Config, found: dict[str, list[dict]], out: Path, *, name: str, missing: list[str], starts: list[dict]
) -> str:
    """Write ``report.json``, ``report.md`` and the plots to ``out``, and return the text.

    found: see `asvr.studies.results.collect`. name: the title. missing: runs that are left out, in words. starts: see
    `asvr.studies.shared.starts`.
    """
    result = compare(study, found)
    intervals = [group["low"] for groups in _compared(result).values() for group in groups.values()]
    about = dict(
        study=name,
        date=date.today().isoformat(),
        asvr=asvr.__version__,
        config=shown_config(Path(study.config)),
        intervals=sum(low is not None for low in intervals),
        missing=missing,
        starts=[dict(start, config=shown_config(Path(start["config"]))) for start in starts],
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(dict(about=about, **result), indent=1) + "\n", encoding="utf-8")
    text = heading(about, result) + markdown(result)
    (out / "report.md").write_text(text, encoding="utf-8", errors="backslashreplace")
    plot = out / groups_file(result)
    for earlier in {RADAR, BARS} - {plot.name}:  # of other groups
        (out / earlier).unlink(missing_ok=True)
    with optional(plot):
        draw_groups(result, plot)
    with optional(out / "curves.png"):
        draw_curves(found, out / "curves.png", baseline=study.baseline)
    return text


def shown_config(config: Path) -> str:
    """A config as a study names it: a recipe of the library, or a path without the current directory."""
    recipes = home().resolve() / CONFIGS
    if config.is_relative_to(recipes):
        return f"{SCOPE}::{config.relative_to(recipes).with_suffix('').as_posix()}"
    return str(config.relative_to(Path.cwd()) if config.is_relative_to(Path.cwd()) else config)


def heading(about: dict, result: dict) -> str:
    """The title, and what was compared."""
    asked = ", ".join(f"{name} {count}" for name, count in result["questions"].items())
    steps = {arm: ", ".join(f"{stage} {n}" for stage, n in own["steps"].items()) for arm, own in result["arms"].items()}
    if len(set(steps.values())) == 1:
        steps = {"every arm": next(iter(steps.values()))}
    arms = [f"`{arm}`{' (baseline)' if arm == result['baseline'] else ''}" for arm in result["arms"]]
    lines = [
        f"# {about['study']}",
        "",
        f"- Date: {about['date']}. asvr {about['asvr']}.",
        f"- Config: `{about['config']}`",
        f"- Steps: {'; '.join(f'{arm}: {own}' for arm, own in steps.items())}",
        f"- Arms: {', '.join(arms)}",
        f"- Seeds: {', '.join(map(str, result['seeds']))}",
        *_of_starts(about["starts"], list(result["arms"])),
        f"- Questions: {asked}. Scenes: {result['scenes']}.",
        f"- Intervals: {about['intervals']}.{by_chance(about['intervals'])}",
    ]
    if result["left_out"]:
        lines.append(
            f"- These kinds are in no group and are left out: {', '.join(result['left_out'])}. So `all` is without "
            "them. The loss and the codes are measured on all questions and images, also on those of these kinds."
        )
    if about["missing"]:
        lines.append(f"- **This report is not complete.** These runs are left out: {'; '.join(about['missing'])}.")
    if (warning := of_few_seeds(result)) is not None:
        lines.append(f"- **{warning[0]}** {warning[1]}")
    return "\n".join([*lines, "", ""])


def _of_starts(starts: list[dict], arms: list[str]) -> list[str]:
    """What the arms start from, if it is a shared training, and what the intervals then mean."""
    lines, started = [], set()
    for start in starts:
        own = {arm: stages for arm, stages in start["arms"].items() if arm in arms}
        if own:
            started |= own.keys()
            named = ", ".join(f"`{arm}` ({', '.join(stages)})" for arm, stages in own.items())
            steps = "".join(f", {stage} {n} steps" for stage, n in start["steps"].items())
            made = f"`{start['config']}`, seed {start['seed']}{steps}"
            lines.append(f"- Start: all seeds of {named} begin with one model, `{start['name']}` ({made}).")
    if lines:
        others = [f"`{arm}`" for arm in arms if arm not in started]
        rest = f" These arms do not begin with a shared model: {', '.join(others)}." if others else ""
        lines.append(
            "- **The intervals hold for this start.** They do not cover another training of it, which may give other "
            f"differences.{rest}"
        )
    return lines


def by_chance(intervals: int) -> str:
    """How many intervals would exclude zero without any effect, as a sentence."""
    if not intervals:
        return ""
    return f" If no arm had an effect, about 5 % of them ({intervals / 20:.1f}) would exclude zero by chance."


def of_few_seeds(result: dict) -> tuple[str, str] | None:
    """A warning and what to do, or None. result: with the ``seeds`` of each of its ``arms``."""
    number = {arm: len(own["seeds"]) for arm, own in result["arms"].items()}
    fewest = min(number.values())
    arms = [arm for arm, own in number.items() if own == fewest]
    of = "" if len(arms) == len(number) else f" of {', '.join(arms)}"
    if fewest == 1:
        return f"Only one seed{of}.", (
            "The intervals do not cover other seeds. They are too narrow if seeds differ, and they nearly always do. "
            f"Train at least {ENOUGH} seeds."
        )
    if fewest < ENOUGH:
        return f"Only {fewest} seeds{of}.", (
            "They hardly show how much seeds differ. An interval can be several times too narrow or too wide. Train at "
            f"least {ENOUGH} seeds."
        )
    return None


def _compared(result: dict) -> dict[str, dict]:
    """The differences by group, for each arm and each further pair."""
    arms = {arm: own["groups"] for arm, own in result["arms"].items() if arm != result["baseline"]}
    return arms | _pairs(result)


def _pairs(result: dict) -> dict[str, dict]:
    return {f"{pair['first']} minus {pair['second']}": pair["groups"] for pair in result["pairs"]}


def markdown(result: dict) -> str:
    """The tables."""
    names = list(result["questions"])
    kinds = list(result["arms"][result["baseline"]]["kinds"])
    by_kind = [[arm, *(f"{100 * found['kinds'][kind]:.1f}" for kind in kinds)] for arm, found in result["arms"].items()]
    pairs = _pairs(result)
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
    rows = [[f"{pair['first']} minus {pair['second']}", _cell(pair["groups"][ALL])] for pair in pairs]
    return [
        f"**The comparisons that decide**, over all questions: difference in percentage points, {level} % confidence "
        "interval, and p of McNemar's test. At this level the chance that any of them excludes zero without an effect "
        "is about 5 %. All other tables have 95 % intervals and only suggest what to test next.",
        "",
        table(["arms", ALL], rows),
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
    covered = (
        "The interval covers other scenes and other seeds."
        if len(result["seeds"]) > 1
        else "The interval covers other scenes. It does not cover other seeds, because there is only one."
    )
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
        why = "no spread, so it cannot be estimated: the seeds of the baseline agree in"
        return [*lines, f"`-`: {why} {_named(unknown, detectable)}. {ADVICE}", ""]
    return lines
