"""The section on cost in each page of docs/methods, written from the measured results."""

import re
from pathlib import Path

from asvr.base.text import table
from asvr.profiling.method_table import GB, MILLION, STAGES

BLOCK = re.compile(r"(<!-- cost -->\n).*?(<!-- end of cost -->)", re.S)


def pages(result: dict, folder: Path) -> dict[Path, str]:
    """The text of each method's page, with its cost from ``result`` (the JSON of benchmarks/methods.py).

    Raises ``ValueError`` for a method without a page, and for a page without a place for the cost."""
    found = {}
    for name, method in result["methods"].items():
        page = folder / f"{name}.md"
        if not page.is_file():
            raise ValueError(f"{page}: there is no page for the method {name}; write one")
        text = page.read_text(encoding="utf-8")
        if not BLOCK.search(text):
            raise ValueError(f"{page}: expected the lines <!-- cost --> and <!-- end of cost -->")
        found[page] = BLOCK.sub(lambda block, method=method: f"{block[1]}{cost(method, result)}{block[2]}", text)
    return found


def cost(method: dict, result: dict) -> str:
    """The cost that a method adds to LLaVA: a table with one column per stage, and the measured times."""
    stages = {name: stage for name in STAGES if (stage := method["stages"].get(name))}
    lines = {
        "FLOPs of a training step": [f"+{stage['flops_online']:.1f} %" for stage in stages.values()],
        "trained parameters": [f"+{stage['trained'] / MILLION:.0f} M" for stage in stages.values()],
        "parameters held, frozen ones included": [f"+{stage['held'] / MILLION:.0f} M" for stage in stages.values()],
        "memory by the plan": [f"+{_memory(stage):.1f} GB" for stage in stages.values()],
    }
    if method["cache_bytes"] is not None:
        cached = [f"+{stage['flops_cached']:.1f} %" for stage in stages.values()]
        lines = {"FLOPs of a training step": lines.pop("FLOPs of a training step"), "the same, cached": cached} | lines
    text = [
        "What the method adds to LLaVA, counted on the 7B recipe. One sample is an image of "
        f"{result['sample']['image_tokens']} tokens and {result['sample']['text_tokens']} text tokens.",
        "",
        table(["", *stages], [[name, *values] for name, values in lines.items()]).rstrip(),
        "",
    ]
    if method["cache_bytes"] is not None:
        text.append(f"A cache holds {method['cache_bytes'] / 1000:.1f} kB for each image.")
    if method["time"]:
        low, high = method["time"]["processor"]["quartiles"]
        text.append(
            f"A step of the small scenes recipe takes {method['time']['processor']['ratio']:.2f} times the processor "
            f"time of LLaVA (quartiles {low:.2f} to {high:.2f}; cached; {method['time']['machine']['device']}, "
            f"{method['time']['machine']['threads']} threads)."
        )
    text.append(f"Command: `{result['command']}` ([all methods](../../benchmarks/results/methods.md)).")
    return "\n".join([*text, ""])


def _memory(stage: dict) -> float:
    return (stage["states"] + stage["activations"]) / GB
