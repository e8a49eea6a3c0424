"""Measure time and memory of a training step, for one config or for two in turn, and compare them with their floor."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from asvr.base.allocator import environment_to_keep, growing_segments
from asvr.base.plots import optional, plain
from asvr.base.text import table
from asvr.flops.step import peak_flops
from asvr.profiling.machine import in_words
from asvr.profiling.worker import OWN, PHASES

# Of the losses of the first step of two sides, relative.
DIFFERENCE, HALF_DIFFERENCE = 1e-4, 2e-2
COLUMNS = ["side", "s a step", "images/s", "tokens/s", "real tokens", "TFLOP", "floor, s", "of the floor", "MFU"]
COLUMNS += ["peak, GiB", "process, GiB"]


class OutOfMemory(Exception):
    pass


@dataclass
class Side:
    """One side of a comparison: the order for its worker, and the measured results."""

    name: str
    spec: dict
    steps: list[dict] = field(default_factory=list)
    memory: dict = field(default_factory=dict)
    info: dict = field(default_factory=dict)
    process: subprocess.Popen | None = None

    def start(self, samples: int) -> None:
        command = [sys.executable, "-m", "asvr.profiling.worker"]
        environment = os.environ | growing_segments() | (environment_to_keep() if self.spec["keep_memory"] else {})
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, encoding="utf-8"
        )
        self.info |= self.ask(dict(self.spec, samples=samples, first=len(self.steps)))

    def ask(self, order: dict) -> dict:
        """Send an order and return the answer. Raises `OutOfMemory`, or ``ValueError`` if the worker refuses."""
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            if code == -9:
                raise OutOfMemory(self.name)
            raise ValueError(f"{self.name}: its process ended with code {code}; see its output above")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(f"{self.name}: {answer['error']}")
        if answer.get("out_of_memory"):
            raise OutOfMemory(self.name)
        return answer

    def run(self, steps: int, *, keep: bool) -> None:
        answer = self.ask(dict(steps=steps))
        keeps = self.spec["keep_memory"] and bool(environment_to_keep()) and not _on_gpu(self)
        self.info["how"] = answer["how"] + ("; freed memory kept" if keeps else "")
        if keep:
            self.steps += answer["steps"]
        else:
            self.info.setdefault("first_losses", answer["steps"][0]["losses"])

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def compare(
    sides: list[Side], *, samples: int, rounds: int, steps: int, keep: Callable[[dict], None] = lambda result: None
) -> dict:
    """Measure all sides in turn, round after round. If memory runs out, halve the samples of a step.

    keep: it gets the result after each complete round, so a stopped run loses at most one round. Raises ``ValueError``
    if one sample does not fit.
    """
    while True:
        try:
            return _compare(sides, samples, rounds, steps, keep)
        except OutOfMemory as error:
            if samples == 1:
                raise ValueError(f"{error}: out of memory with one sample a step") from error
            samples //= 2
            print(f"{error}: out of memory; trying {samples} samples a step", file=sys.stderr)
        finally:
            for side in sides:
                side.stop()


def _compare(sides: list[Side], samples: int, rounds: int, steps: int, keep: Callable[[dict], None]) -> dict:
    for side in sides:
        side.steps, side.memory, side.info = [], {}, {}
        # One to warm up, one for the peak memory; on an accelerator each turn of several sides is a process of its own.
        side.spec |= dict(steps=2 + rounds * steps, steps_of_turn=2 + (steps if len(sides) > 1 else rounds * steps))
    rates: list[dict] = []
    for number in range(1, rounds + 1):
        for side in sides:
            _warm_up(side, sides, samples)
            if not rates:
                rates.append(_rates(side))
            side.run(steps, keep=True)
            line = f"round {number}/{rounds}, {side.name}: {_seconds(side.steps[-1]):.4g} s"
            print(line, file=sys.stderr)
            if not side.memory and (number == rounds or _on_gpu(side)):  # the CPU's profiler would slow later steps
                side.memory = side.ask(dict(peak=True))
                print(f"{line}, peak {side.memory['peak_bytes'] / 2**30:.3g} GiB", file=sys.stderr)
        if number == 1:
            _require_same_losses(sides)
        if number == rounds:
            rates.append(_rates(sides[-1]))
        if all(side.memory for side in sides):
            result = _result(sides, samples, number, rates)
            keep(result)
    return result


def _result(sides: list[Side], samples: int, rounds: int, rates: list[dict]) -> dict:
    return dict(
        samples=samples,
        rounds=rounds,
        machine=sides[0].info["machine"],
        flop_per_s={dtype: statistics.median(rate[dtype] for rate in rates) for dtype in rates[0]},
        sides={side.name: _summary(side, rates) for side in sides},
    )


def _warm_up(side: Side, sides: list[Side], samples: int) -> None:
    """Start a side if needed, and take one step to warm up.

    On an accelerator only one side may hold memory. So the others end, and this one is started again.
    """
    if side.process is None:
        if any(_on_gpu(other) for other in sides):
            for other in sides:
                other.stop()
        side.start(samples)
        side.run(1, keep=False)


def _on_gpu(side: Side) -> bool:
    return side.info.get("kind") == "cuda"


def _require_same_losses(sides: list[Side]) -> None:
    """Raise ``ValueError`` if another way to take a step has other losses than the first side."""
    ours = sides[0]
    for side in sides[1:]:
        if side.spec["implementation"] != OWN:
            difference = _difference(ours.info["first_losses"], side.info["first_losses"])
            limit = HALF_DIFFERENCE if "bf16" in (ours.spec["precision"], side.spec["precision"]) else DIFFERENCE
            if not difference <= limit:
                raise ValueError(
                    f"the losses of the two sides differ by {difference:.1e}, more than {limit:.0e} of them"
                )


def _difference(first: dict[str, float], second: dict[str, float]) -> float | None:
    """The largest relative difference of a loss that both sides have."""
    shared = first.keys() & second.keys()
    return max(abs(first[name] / second[name] - 1) for name in shared) if shared else None


def _rates(side: Side) -> dict[str, float]:
    return {dtype: side.ask(dict(rate=dtype))["flop_per_s"] for dtype in ("float32", "bfloat16")}


def _seconds(step: dict) -> float:
    return sum(step["seconds"].values())


def _summary(side: Side, rates: list[dict]) -> dict:
    dtype = "bfloat16" if side.spec["precision"] == "bf16" else "float32"
    rate = statistics.median(rate[dtype] for rate in rates)
    seconds = statistics.median(map(_seconds, side.steps))
    phases = {name: statistics.median(step["seconds"].get(name, 0.0) for step in side.steps) for name in PHASES}
    tokens, images, flops, positions = (
        statistics.mean(step[key] for step in side.steps) for key in ("tokens", "images", "flops", "positions")
    )
    peak = peak_flops(side.info["machine"]["device"]) if dtype == "bfloat16" else None
    return dict(
        seconds=seconds,
        all_seconds=[round(_seconds(step), 3) for step in side.steps],
        phases=phases,
        images_per_s=images / seconds,
        tokens_per_s=tokens / seconds,
        real_tokens_percent=100 * tokens / positions,
        tflop=flops / 1e12,
        tflop_per_s=flops / seconds / 1e12,
        floor_seconds=flops / rate,
        of_floor_percent=100 * flops / rate / seconds,
        mfu_percent=None if peak is None else 100 * flops / seconds / peak,
        peak_gib=side.memory["peak_bytes"] / 2**30,
        resident_gib=side.memory["resident_bytes"] / 2**30,
        losses=side.info["first_losses"],
        how=side.info["how"],
        spec=side.spec,
    )


def ratios(result: dict) -> dict[str, dict]:
    """The ratio of each other side to the first, by name: time, memory, and the largest relative difference of a loss.

    The ratio of time is the median over pairs of steps, because the speed of a machine drifts.
    """
    first, *others = result["sides"].items()
    return {name: _ratio(first[1], side) for name, side in others}


def _ratio(first: dict, second: dict) -> dict:
    pairs = zip(first["all_seconds"], second["all_seconds"], strict=True)
    times = sorted(theirs / own for own, theirs in pairs)
    return dict(
        time=statistics.median(times),
        times=[round(times[0], 3), round(times[-1], 3)],
        memory=second["peak_gib"] / first["peak_gib"],
        loss_difference=_difference(first["losses"], second["losses"]),
    )


def markdown(result: dict) -> str:
    """A table with one row per side."""
    lines = [
        f"{in_words(result['machine'])}; {result['samples']} samples a step, median of {result['rounds']} rounds; "
        "matrix products "
        + ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {dtype}" for dtype, rate in result["flop_per_s"].items()),
        "",
    ]
    cells = []
    for name, side in result["sides"].items():
        mfu = "-" if side["mfu_percent"] is None else f"{side['mfu_percent']:.0f} %"
        cells.append(
            [name]
            + [f"{side['seconds']:.2f}", f"{side['images_per_s']:.2f}", f"{side['tokens_per_s']:.0f}"]
            + [f"{side['real_tokens_percent']:.0f} %", f"{side['tflop']:.2f}", f"{side['floor_seconds']:.2f}"]
            + [f"{side['of_floor_percent']:.0f} %", mfu, f"{side['peak_gib']:.2f}", f"{side['resident_gib']:.2f}"]
        )
    lines.append(table(COLUMNS, cells).rstrip())
    lines += ["", *(f"{name}: {side['how']}" for name, side in result["sides"].items())]
    own = next(iter(result["sides"]))
    for name, found in ratios(result).items():
        low, high = found["times"]
        line = (
            f"{name} / {own}: {found['time']:.2f} x the time ({low:.2f} to {high:.2f} in single steps), "
            f"{found['memory']:.2f} x the memory; the other way round {1 / found['time']:.2f} x and "
            f"{1 / found['memory']:.2f} x"
        )
        if found["loss_difference"] is not None:
            line += f"; losses of the first step differ by {found['loss_difference']:.1e}"
        lines += ["", line]
    return "\n".join(lines) + "\n"


def write(result: dict, out: Path) -> None:
    """Write ``out``.json, .md and .png."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(markdown(result), encoding="utf-8", errors="backslashreplace")
    with optional(out.with_suffix(".png")):
        _draw(result, out.with_suffix(".png"))


def _draw(result: dict, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [plain(name) for name in result["sides"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 1.2 + 0.7 * len(names)), width_ratios=(2, 1))
    start = [0.0] * len(names)
    for phase in PHASES:
        values = [side["phases"][phase] for side in result["sides"].values()]
        left.barh(names, values, left=start, label=phase)
        start = [a + b for a, b in zip(start, values, strict=True)]
    floors = [side["floor_seconds"] for side in result["sides"].values()]
    left.plot(floors, names, "k|", markersize=28, label="floor")
    left.set_xlabel("seconds a step")
    left.legend(fontsize=7, markerscale=0.3)
    left.invert_yaxis()
    right.barh(names, [side["peak_gib"] for side in result["sides"].values()], color="grey")
    right.set_xlabel("peak memory, GiB")
    right.set_yticks([])
    right.invert_yaxis()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
