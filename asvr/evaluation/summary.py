"""The summary plot of a run: losses, accuracy of codes and answers, and example images."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from asvr.base.plots import plain, scale_by_logarithm

COLORS = BLUE, ORANGE, GREY = "#2864a8", "#d1742c", "#777777"


def draw_summary(work_dir: Path, results: dict) -> Path:
    """Draw ``summary.png`` from ``metrics.jsonl`` and the results of the stages."""
    import matplotlib  # here: it takes a second to import, and training does not need it

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    examples = next((r["examples"] for r in reversed(list(results.values())) if r["examples"]), [])
    examples = [example for example in examples if example["maps"]]  # only whole images have maps
    height = 3.4 if not examples else 7.2
    figure = plt.figure(figsize=(13, height), layout="constrained")
    parts = figure.subfigures(2, 1, height_ratios=[1, 1.05]) if examples else [figure]
    loss_axis, code_axis, answer_axis = parts[0].subplots(1, 3)
    last_stage = stages[-1]
    _curves(loss_axis, lines, stages)
    _depths(code_axis, [line for line in lines if line["stage"] == last_stage], last_stage)
    _answers(answer_axis, results)
    if examples:
        _examples(parts[1], examples)
    file = work_dir / "summary.png"
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file


def _curves(axis, lines: list[dict], stages: list[str]) -> None:
    """Draw one curve per loss, in one colour through all stages. The stages follow one another."""
    keys = sorted({key for line in lines for key in line if key.startswith("loss_")}, key=lambda k: k != "loss_text")
    colors = {key: COLORS[i % len(COLORS)] for i, key in enumerate(keys)}
    offset = 0
    for j, stage in enumerate(stages):
        own = [line for line in lines if line["stage"] == stage]
        for key in keys:
            points = [(offset + line["step"], line[key]) for line in own if key in line]
            if points:
                axis.plot(*zip(*points, strict=True), color=colors[key], linewidth=1.3, marker=_marker(points))
        axis.axvline(offset, color=GREY, linewidth=0.6, linestyle=":")
        place = 1.0 + 0.05 * (len(stages) - 1 - j)  # stepped, so that names of short stages do not overlap
        axis.text(
            offset, place, plain(stage), transform=axis.get_xaxis_transform(), va="bottom", fontsize=8, color=GREY
        )
        offset += own[-1]["steps"]
    for key in keys:
        axis.plot([], [], color=colors[key], label=plain(key.removeprefix("loss_")))
    axis.set(xlabel="step", ylabel="loss (text, codes: nats per token)")
    scale_by_logarithm(axis)
    axis.legend(frameon=False, fontsize=8)


def _marker(points: list) -> str | None:
    """A marker for a single point, because a line through one point is not visible."""
    return "." if len(points) == 1 else None


def _depths(axis, lines: list[dict], stage: str) -> None:
    """Draw the accuracy of each depth of each target. If no target has codes, draw the other numbers of targets."""
    for key in [k for k in lines[-1] if k.startswith("acc_") and isinstance(lines[-1][k], list)]:
        for depth in range(len(lines[-1][key])):
            points = [(line["step"], 100 * line[key][depth]) for line in lines if key in line]
            shade = 1 - 0.6 * depth / max(1, len(lines[-1][key]) - 1)
            axis.plot(
                *zip(*points, strict=True),
                color=ORANGE,
                alpha=shade,
                label=plain(f"{key[4:]}, depth {depth + 1}"),
                linewidth=1.3,
                marker=_marker(points),
            )
    axis.set_xlabel(plain(f"step of {stage}"))
    if axis.lines:
        axis.set(ylabel="codes predicted right, %", ylim=(0, 100))
    else:
        _own_metrics(axis, lines)
    if axis.lines and not axis.get_ylabel():
        axis.set_ylabel("metrics of the targets")
    if axis.lines:
        axis.legend(frameon=False, fontsize=8)
    else:
        axis.text(0.5, 0.5, "targets without metrics", transform=axis.transAxes, ha="center", color=GREY)


def _own_metrics(axis, lines: list[dict]) -> None:
    """Draw the numbers of targets without codes: those of `Target.metrics` that are single numbers."""
    targets = [key.removeprefix("loss_") for key in lines[-1] if key.startswith("loss_") and key != "loss_text"]
    keys = [key for key in lines[-1] if key.endswith(tuple(f"_{name}" for name in targets))]
    keys = [key for key in keys if not key.startswith(("loss_", "acc_")) and isinstance(lines[-1][key], int | float)]
    for i, key in enumerate(keys):
        points = [(line["step"], line[key]) for line in lines if key in line]
        color = COLORS[(i + 1) % len(COLORS)]
        axis.plot(*zip(*points, strict=True), color=color, label=plain(key), linewidth=1.3, marker=_marker(points))


def _answers(axis, results: dict) -> None:
    """Draw the accuracy of answers by kind of question, with one bar per stage that has it in its results."""
    results = {stage: result for stage, result in results.items() if "by_kind" in result}
    if not results:
        axis.text(0.5, 0.5, "not evaluated", transform=axis.transAxes, ha="center", color=GREY)
        return
    kinds = ["all", *[k for k in next(iter(results.values()))["by_kind"] if k != "all"]]
    width = 0.8 / len(results)
    for j, (stage, result) in enumerate(results.items()):
        values = [result["accuracy"]] + [result["by_kind"].get(k, dict(accuracy=0))["accuracy"] for k in kinds[1:]]
        color = BLUE if j == len(results) - 1 else "#bbbbbb"
        places = np.arange(len(kinds)) + (j - (len(results) - 1) / 2) * width
        bars = axis.barh(places, [100 * v for v in values], height=width, color=color, label=plain(stage))
        axis.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    axis.set(xlabel="questions answered right, %", xlim=(0, 115))
    axis.set_yticks(range(len(kinds)), [plain(kind) for kind in kinds])
    axis.invert_yaxis()
    axis.legend(frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(1.0, 1.12), ncols=len(results))


def _examples(figure, examples: list[dict]) -> None:
    """Draw each image with its question, the answer, and a map of the tokens that were predicted right."""
    figure.suptitle(
        "Images of the evaluation, and the share of each visual token's codes that was predicted right", fontsize=10
    )
    axes = figure.subplots(2, len(examples), squeeze=False)
    for column, example in enumerate(examples):
        image, share = axes[0, column], axes[1, column]
        image.imshow(Image.open(example["image"]).convert("RGB"))
        mark = "right" if example["right"] else f"wrong, expected: {plain(example['expected'])}"
        image.set_title(f"{plain(example['question'])}\n{plain(example['answer'])} ({mark})", fontsize=7)
        name, values = next(iter(example["maps"].items()))
        drawn = share.imshow(np.array(values), vmin=0, vmax=1, cmap="viridis")
        share.set_title(f"{plain(name)}: {100 * np.nanmean(values):.0f} %", fontsize=8)
        for axis in (image, share):
            axis.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes.ravel().tolist(), shrink=0.5)
