"""Plots of a study: right answers by group of questions, and learning curves."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from asvr.base.plots import plain, scale_by_logarithm
from asvr.studies.comparison import ALL

RADAR, BARS = "radar.png", "bars.png"


def pyplot():
    """matplotlib's pyplot, without a screen."""
    import matplotlib  # here: it takes a second to import

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def arm_colours(plt, arms: Iterable[str], baseline: str) -> dict[str, object]:
    """The colour of each arm in all plots. The baseline is black."""
    others = [arm for arm in arms if arm != baseline]
    if len(others) <= 20:
        palette = plt.get_cmap("tab10" if len(others) <= 10 else "tab20").colors
    else:
        palette = plt.get_cmap("turbo")(np.linspace(0, 1, len(others)))
    return {baseline: "black"} | dict(zip(others, palette[: len(others)], strict=True))


def groups_file(result: dict) -> str:
    """The name of the plot over groups. A radar plot of fewer than three groups would be a line."""
    return RADAR if len(_groups(result)) >= 3 else BARS


def _groups(result: dict) -> list[str]:
    return [name for name in result["questions"] if name != ALL]


def draw_groups(result: dict, file: Path) -> None:
    """Plot the right answers by group. `groups_file` decides how."""
    plt = pyplot()
    names = _groups(result)
    colours = arm_colours(plt, result["arms"], result["baseline"])
    figure = plt.figure(figsize=(7, 6) if groups_file(result) == RADAR else (7, 4), layout="constrained")
    if groups_file(result) == RADAR:
        axis = figure.add_subplot(polar=True)
        _radar(axis, result, names, colours)
    else:
        axis = figure.add_subplot()
        _bars(axis, result, names, colours)
    axis.set_ylim(0, 100)
    axis.set_title("right answers, %")
    axis.legend(loc="upper left", bbox_to_anchor=(1.05, 1.05), fontsize=8, frameon=False)
    figure.savefig(file, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _radar(axis, result: dict, names: list[str], colours: dict) -> None:
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    for arm, found in result["arms"].items():
        shares = [100 * found["groups"][name]["share"] for name in names]
        width = 2.5 if arm == result["baseline"] else 1.3
        axis.plot([*angles, angles[0]], [*shares, shares[0]], label=plain(arm), linewidth=width, color=colours[arm])
    axis.set_xticks(angles, [plain(name) for name in names])


def _bars(axis, result: dict, names: list[str], colours: dict) -> None:
    """A bar for the mean of each arm in each group, with a dot for each seed."""
    width, places = 0.8 / len(result["arms"]), np.arange(len(names))
    for number, (arm, found) in enumerate(result["arms"].items()):
        shares = [100 * found["groups"][name]["share"] for name in names]
        middle = places - 0.4 + width * (number + 0.5)
        axis.bar(middle, shares, 0.9 * width, label=plain(arm), color=colours[arm], alpha=0.75)
        for x, name in zip(middle, names, strict=True):
            seeds = [100 * share for share in found["groups"][name]["by_seed"]]
            axis.plot([x] * len(seeds), seeds, ".", color="grey", markersize=4)
    axis.set_xticks(places, [plain(name) for name in names])


def draw_curves(found: dict[str, list[dict]], file: Path, *, baseline: str) -> None:
    """Plot the text loss and the first target's code accuracy over the steps of the last stage, as means over seeds."""
    plt = pyplot()
    colours = arm_colours(plt, found, baseline)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for arm, runs in found.items():
        lines = [_last_stage(Path(run["work_dir"]) / "metrics.jsonl") for run in runs]
        steps = [line["step"] for line in lines[0]]
        style = dict(linewidth=1.2, color=colours[arm])
        losses = np.mean([[line.get("loss_text", np.nan) for line in own] for own in lines], 0)
        left.plot(steps, losses, label=plain(arm), **style)
        keys = [key for key in lines[0][-1] if key.startswith("acc_") and isinstance(lines[0][-1][key], list)]
        if keys:
            values = np.mean([[np.mean(line.get(keys[0], np.nan)) for line in own] for own in lines], 0)
            right.plot(steps, 100 * values, label=plain(f"{arm}: {keys[0][4:]}"), **style)
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
