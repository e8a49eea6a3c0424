"""The report of public benchmarks: the paper's table, if one of its tasks ran, and every metric of every task."""

import json
from pathlib import Path

from asvr.base.text import table
from asvr.benchmarks.paper import AVERAGE, PAPER, PAPER_ROWS, paper_figures

NOT_RUN = "-"
UNCHECKED = """
Their tasks are in none of the folders of this command (`--include-path`). They may have changed since they ran.
"""


def write_report(result: dict, out: Path) -> None:
    """Write ``results.json`` and ``report.md`` to ``out``.

    result: see `asvr.benchmarks.run.run_benchmarks`.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "report.md").write_text(markdown(result), encoding="utf-8", errors="backslashreplace")


def markdown(result: dict, *, notes: bool = True) -> str:
    """The report as Markdown. notes: whether to explain the columns of the paper's table."""
    model, settings = result["model"], result["settings"]
    parts = [f"# {model['folder']}" + (f", stage {model['stage']}" if model["stage"] else "")]
    asked = "" if settings["limit"] is None else f"the first {settings['limit']} questions of each task; "
    parts.append(
        f"{asked}weights {model['weights'][:12]}; {', '.join(f'{k} {v}' for k, v in result['versions'].items())}"
    )
    results = flat_results(result["tasks"])
    if any(benchmark.task in results or benchmark.task in result["missing"] for benchmark in PAPER):
        label = Path(model["folder"]).name + (f" (first {settings['limit']})" if settings["limit"] is not None else "")
        parts += ["## The paper's table", paper_table({label: paper_figures(results)})]
        parts += [paper_notes()] if notes else []
    rows = [row for task, found in results.items() for row in metric_rows(task, found)]
    if rows:
        parts += ["## Every metric", table(["task", "metric", "value", "standard error", "questions"], rows)]
    if result["unchecked"]:
        parts += ["## Results of an earlier command, not checked", _listed(result["unchecked"]) + UNCHECKED]
    if result["failed"]:
        parts += ["## Failed", "".join(f"- {name}: {why}\n" for name, why in result["failed"].items())]
    if result["missing"]:
        parts += ["## Left out, because their data are not on this machine", _listed(result["missing"])]
    if result["changed"]:
        parts += ["## Left out, because they have changed since they ran", _listed(result["changed"])]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def flat_results(tasks: dict[str, dict]) -> dict[str, dict]:
    """The results by task and by member of a group: metrics in lmms-eval's form, and the number of questions."""
    found = {}
    for result in tasks.values():
        for task, metrics in result["results"].items():
            asked = result["n-samples"].get(task, {}).get("effective")
            found[task] = dict(metrics, questions=asked)
    return found


def metric_rows(task: str, found: dict) -> list[list[str]]:
    rows = []
    for key, value in found.items():
        metric, _, name = key.partition(",")
        if not name or not isinstance(value, int | float) or metric.endswith(("_stderr", "_stderr_clt")):
            continue
        label = metric if name == "none" else f"{metric} ({name})"
        error = found.get(f"{metric}_stderr,{name}")
        asked = found["questions"]
        rows.append([task, label, _number(value), _number(error), NOT_RUN if asked is None else str(asked)])
    return rows


def paper_table(rows: dict[str, dict[str, float]]) -> str:
    """The paper's rows and ours, in the paper's columns and groups. '-' means that a task was not run."""
    columns = [benchmark.column for benchmark in PAPER] + [AVERAGE]
    lines = {name: dict(zip(columns, values, strict=True)) for name, values in PAPER_ROWS.items()} | rows
    cells = {
        name: {column: f"{values[column]:.1f}" if column in values else NOT_RUN for column in columns}
        for name, values in lines.items()
    }
    names = ["", "", *lines]
    blocks = [[name.ljust(max(map(len, names))) for name in names]]
    groups = dict.fromkeys(benchmark.group for benchmark in PAPER)
    for group in [*groups, ""]:  # the average stands alone
        own = [b.column for b in PAPER if b.group == group] or [AVERAGE]
        figures = ["  ".join(column.rjust(5) for column in own)]
        figures += ["  ".join(row[column].rjust(max(5, len(column))) for column in own) for row in cells.values()]
        width = max(len(group), len(figures[0]))
        blocks.append([group.ljust(width), *(text.rjust(width) for text in figures)])
    text = [" | ".join(parts).rstrip() for parts in zip(*blocks, strict=True)]
    return "\n".join(["```", *text, "```"]) + "\n"


def paper_notes() -> str:
    rows = [
        [b.column, b.name, b.task, " + ".join(b.metrics), "; ".join(text for text in (b.note, b.judge) if text)]
        for b in PAPER
    ]
    intro = (
        "The paper's rows are from its table 1 (Vicuna-7B, SigLIP, 558K and 665K samples). They were measured with "
        "Cambrian-1's code and the authors' prompts. Our rows were measured with lmms-eval. So compare our rows with "
        "one another first.\n\n"
    )
    return intro + table(["column", "benchmark", "task", "metric", "note"], rows)


def _listed(names: list[str]) -> str:
    return "".join(f"- {name}\n" for name in names)


def _number(value) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else NOT_RUN
