"""How the figures of each part of ``benchmarks/gpu.py`` are read, from what it printed or wrote."""

import json
import re
from collections.abc import Callable
from pathlib import Path


def own_figures(text: str) -> dict:
    lines = [line for line in text.splitlines() if line.startswith("FIGURES ")]
    return json.loads(lines[-1].removeprefix("FIGURES ")) if lines else {}


def closing_line(text: str) -> dict:
    found = re.findall(r"^=*\s*(\d+ (?:passed|failed|skipped|error).*? in [\d.:]+s.*?)\s*=*$", text, re.MULTILINE)
    return dict(tests=found[-1]) if found else {}


def turns(text: str) -> dict:
    """Peak memory of each side, and its time over the first one's, of what was measured until the end."""
    tries = [_sides(part) for part in text.split("out of memory; trying")]  # each with fewer samples a step
    found = max(reversed(tries), key=len)
    first, *others = found or [None]
    times = {f"{name} / {first}": round(found[name]["seconds"] / found[first]["seconds"], 3) for name in others}
    return dict(time_ratio=times, peak_gib={name: side.get("peak_gib") for name, side in found.items()})


def _sides(text: str) -> dict[str, dict]:
    found: dict[str, dict] = {}
    for name, seconds, peak in re.findall(r"round 1/1, (.+): (\S+) s(?:, peak (\S+) GiB)?$", text, re.MULTILINE):
        found.setdefault(name, {}).update(dict(seconds=float(seconds)) | (dict(peak_gib=float(peak)) if peak else {}))
    return found


def step_figures(out: Path) -> Callable[[str], dict]:
    """Of ``benchmarks/throughput.py``: also MFU and tokens per second, if it came to its end. out: its ``--out``."""

    def figures(text: str) -> dict:
        sides = _written(out).get("sides", {})
        known = {key: {name: side[key] for name, side in sides.items()} for key in ("mfu_percent", "tokens_per_s")}
        rounded = {key: {name: value and round(value, 1) for name, value in own.items()} for key, own in known.items()}
        return turns(text) | (rounded if sides else {})

    return figures


def attention_figures(out: Path) -> Callable[[str], dict]:
    def figures(text: str) -> dict:
        return {
            f"{row['part']}, {row['kernel']}, {row['heads']}/{row['key_heads']} heads": f"{row['speedup']:.2f} x"
            for row in _written(out).get("rows", [])
        }

    return figures


def memory_figures(out: Path) -> Callable[[str], dict]:
    def figures(text: str) -> dict:
        return {
            f"{row['stage']}, {row['rows']} rows": dict(
                planned_gb=float(f"{row['planned'] / 1e9:.4g}"),
                peak_gb=float(f"{row['measured'] / 1e9:.4g}"),
                ratio=round(row["measured"] / row["planned"], 3),
            )
            for row in _written(out).get("rows", [])
        }

    return figures


def _written(out: Path) -> dict:
    file = out.with_suffix(".json")
    return json.loads(read(file)) if file.is_file() else {}


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
