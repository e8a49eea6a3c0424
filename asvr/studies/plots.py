"""Plots of a study: right answers by group of questions, and learning curves."""

import json
from pathlib import Path

import numpy as np

from asvr.base.plots import plain, scale_by_logarithm
from asvr.studies.comparison import ALL


def _plt():
    import matplotlib  # here: it takes a second to import

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_groups(result: dict, file: Path) -> None:
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


def draw_curves(found: dict[str, list[dict]], file: Path) -> None:
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
