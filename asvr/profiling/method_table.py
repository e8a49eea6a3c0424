"""The cost of all methods as one table and one picture."""

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
    """One row a method; what the columns mean stands above."""
    rows = [_row(name, method) for name, method in result["methods"].items()]
    return "\n".join([*_head(result), table(COLUMNS, rows)])


def _head(result: dict) -> list[str]:
    sample, timed = result["sample"], [m["time"] for m in result["methods"].values() if m["time"]]
    stages = [stage for method in result["methods"].values() for stage in method["stages"].values() if stage]
    modes = sorted({stage["checkpointing"] for stage in stages})
    lines = [
        f"`{result['command']}`",
        "",
        "What each method adds to LLaVA, which is the method's own config without its targets and with causal "
        "attention (VIRAL's has LoRA on both sides). Counted on the configs of `configs/targets/vicuna7b`: one sample "
        f"is an image ({sample['image_tokens']} tokens) and {sample['text_tokens']} text tokens. "
        f'"{NONE}": the stage has no target, or there is nothing to cache.',
        "",
        "- FLOPs: of a training step, recomputation included, the truth made online (in brackets: cached, where it can "
        "be). The encoder runs on both sides.",
        "- trained: parameters that get a gradient, in millions. held: all that must be there, frozen teachers, "
        "averages and buffers among them. Both of the last stage that has the target.",
        "- memory: by the plan, on one card: weights, gradients and optimiser states + activations; activation "
        f"checkpointing of the LLM is the config's ({', '.join(modes)}).",
    ]
    if timed:
        loads = [load for one in timed for load in one["load"]]
        rounds = sorted({one["rounds"] for one in timed})
        lines += [
            "- time: a step on the small config of `configs/targets/scenes` over one of LLaVA, in the last stage that "
            "has the target; truths and the encoder's features cached where they can be. The two take turns in one "
            f"process; the median over {' or '.join(map(str, rounds))} pairs of neighbouring steps, in brackets "
            "the quartiles. processor: seconds of the processor, which other processes of the machine change less.",
            f"- {in_words(timed[0]['machine'])}; {timed[0]['how']}. Load averages of a minute while it ran: "
            f"{min(loads):.1f} to {max(loads):.1f}, of which this benchmark is 1; the rest are other processes.",
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
    """Left the FLOPs counted at 7B, right the time measured on the small config; a warning where it cannot be drawn."""
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
