"""The cost of all methods as one table and one plot."""

from pathlib import Path

from asvr.base.plots import optional
from asvr.base.text import table
from asvr.profiling.machine import in_words

MILLION, GB = 1e6, 1e9
NONE = "-"
COLUMNS = ["method", "reconstructs", "FLOPs, pretrain", "FLOPs, finetune", "trained, M", "held, M"]
COLUMNS += ["memory, pretrain, GB", "memory, finetune, GB", "cache, kB an image", "time, processor", "time, clock"]
STAGES = ("pretrain", "finetune")


def markdown(result: dict) -> str:
    """A table with one row per method. The text above it explains the columns."""
    rows = [_row(name, method) for name, method in result["methods"].items()]
    return "\n".join([*_head(result), table(COLUMNS, rows)])


def _head(result: dict) -> list[str]:
    sample, timed = result["sample"], [m["time"] for m in result["methods"].values() if m["time"]]
    stages = [stage for method in result["methods"].values() for stage in method["stages"].values() if stage]
    modes = sorted({stage["checkpointing"] for stage in stages})
    lines = [
        f"`{result['command']}`",
        "",
        "The cost that each method adds to LLaVA. LLaVA is here the method's own config without its targets and with "
        "causal attention (for VIRAL both have LoRA). It is counted on the configs of `configs/targets/vicuna7b`. One "
        f"sample is an image ({sample['image_tokens']} tokens) and {sample['text_tokens']} text tokens. "
        f'"{NONE}" means that the stage has no target, or that there is nothing to cache.',
        "",
        "- FLOPs: of a training step, with recomputation. The truth is computed online (in brackets: it is cached, if "
        "that is possible). The encoder runs on both sides.",
        "- trained: parameters that get a gradient, in millions. held: all parameters and buffers, with frozen "
        "teachers and averages. Both are for the last stage that has the target.",
        "- memory: planned for one card: weights, gradients and optimiser states + activations. Activation "
        f"checkpointing of the LLM is the config's ({', '.join(modes)}).",
    ]
    if timed:
        loads = [load for one in timed for load in one["load"]]
        rounds = sorted({one["rounds"] for one in timed})
        lines += [
            "- time: a step of the small config of `configs/targets/scenes`, divided by a step of LLaVA, in the last "
            "stage that has the target. Truths and the encoder's features are cached if possible. The two alternate in "
            f"one process. The number is the median over {' or '.join(map(str, rounds))} pairs of neighbouring steps, "
            "with quartiles in brackets. processor: processor time, which other processes of the machine change less.",
            f"- {in_words(timed[0]['machine'])}; {timed[0]['how']}. Load averages over a minute during the run: "
            f"{min(loads):.1f} to {max(loads):.1f}. This benchmark is 1 of it; the rest are other processes.",
        ]
    return [*lines, ""]


def _row(name: str, method: dict) -> list[str]:
    stages = [method["stages"].get(stage) for stage in STAGES]
    last = next(stage for stage in reversed(stages) if stage)
    cached = method["cache_bytes"] is not None
    return [
        name,
        method["reconstructs"],
        *(_flops(stage, cached) for stage in stages),
        _millions(last["trained"]),
        _millions(last["held"]),
        *(f"{stage['states'] / GB:.1f} + {stage['activations'] / GB:.1f}" if stage else NONE for stage in stages),
        f"{method['cache_bytes'] / 1000:.1f}" if cached else NONE,
        *(_time(method["time"], by) for by in ("processor", "clock")),
    ]


def _flops(stage: dict | None, cached: bool) -> str:
    if stage is None:
        return NONE
    return f"{stage['flops_online']:.1f} %" + (f" ({stage['flops_cached']:.1f} %)" if cached else "")


def _millions(number: int) -> str:
    return f"{number / MILLION:.0f}"


def _time(time: dict | None, by: str) -> str:
    if time is None:
        return NONE
    low, high = time[by]["quartiles"]
    return f"{time[by]['ratio']:.2f} ({low:.2f} to {high:.2f})"


def draw(result: dict, file: Path) -> None:
    """Plot the FLOPs counted at 7B (left) and the times measured on the small config (right). Errors are a warning."""
    with optional(file):
        _draw(result["methods"], file)


def _draw(methods: dict[str, dict], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(methods)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 1.6 + 0.42 * len(names)), sharey=True)
    for offset, stage, colour in ((-0.2, "pretrain", "tab:orange"), (0.2, "finetune", "tab:blue")):
        own = [(y, found) for y, name in enumerate(names) if (found := methods[name]["stages"].get(stage))]
        places, online = [y + offset for y, _ in own], [found["flops_online"] for _, found in own]
        left.barh(places, online, height=0.36, color=colour, alpha=0.4, label=f"{stage}, truth online")
        cached = [found["flops_cached"] for _, found in own]
        left.barh(places, cached, height=0.36, color=colour, label=f"{stage}, truth cached")
    left.set(yticks=range(len(names)), yticklabels=names, xscale="symlog", title="7B, counted")
    left.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    left.set_xlabel("FLOPs more than LLaVA, % of a training step")
    left.legend(fontsize=7, loc="lower right")
    left.invert_yaxis()
    timed = [(y, time) for y, name in enumerate(names) if (time := methods[name]["time"])]
    ratios = [100 * (time["processor"]["ratio"] - 1) for _, time in timed]
    ends = [[100 * (end - 1) for end in time["processor"]["quartiles"]] for _, time in timed]
    spread = [[r - low for r, (low, _) in zip(ratios, ends, strict=True)]]
    spread.append([high - r for r, (_, high) in zip(ratios, ends, strict=True)])
    places = [y for y, _ in timed]
    right.errorbar(ratios, places, xerr=spread, fmt="o", capsize=3, color="black", label="processor time, quartiles")
    right.plot([time["extra_flops"] for _, time in timed], places, "x", color="tab:red", label="FLOPs of the same step")
    right.axvline(0, color="grey", linewidth=0.8)
    right.set_xlabel("more than LLaVA, % of a training step")
    right.set_title("small scenes config, measured")
    right.legend(fontsize=7, loc="lower right")
    right.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
