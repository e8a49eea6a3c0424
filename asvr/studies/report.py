"""The report of a study: tables, a plot over groups of questions, and learning curves."""

import json
from datetime import date
from pathlib import Path

from mmengine.config import Config

import asvr
from asvr.base.plots import optional
from asvr.base.recipes import CONFIGS, home
from asvr.registry import SCOPE
from asvr.studies.comparison import compare
from asvr.studies.plots import BARS, RADAR, draw_curves, draw_groups, groups_file
from asvr.studies.report_tables import markdown, pairs_of

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
        f"- Seeds: {shown_seeds(result)}",
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


def shown_seeds(result: dict) -> str:
    """The seeds of the baseline, and of the arms that have others."""
    others = {arm: own["seeds"] for arm, own in result["arms"].items() if own["seeds"] != result["seeds"]}
    named = "".join(f"; `{arm}`: {', '.join(map(str, seeds))}" for arm, seeds in others.items())
    return ", ".join(map(str, result["seeds"])) + named


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
    return arms | pairs_of(result)
