"""Kill a training run at random moments and compare its end with that of a run that nobody touched.

The same command is started again after each kill, until the run is finished; then another run begins, until there have
been enough kills. The first process of each is killed while it prepares its data. Of the others every third is killed
at any time of its life, the rest in a checkpoint that is being written, a validation, an evaluation, or the end of a
stage. A share of the signals is SIGTERM, upon which a run has to end by itself. All final weights (bitwise), losses,
answers and results must be those of the untouched run; else the exit code is 1 and the folders are kept.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from asvr.base.interruption import EXIT_CODE
from asvr.commands.cli import require_positive, run_tool

ROOT = Path(__file__).parents[1]
POLL, PATIENCE = 0.002, 120  # seconds; in the second a process must have ended upon its signal
ANY = "any time"
BEGUN = r"stage (\w+): \d+ samples"
# What the output of a process has last decides where it is.
MARKS = {
    "preparation": r"features:|codes \w+:|fitting the tokenizer",
    "training": rf"{BEGUN}|, validation: ",
    "evaluation": r"answers:",
    "end": r"written: ",
}
AIMS = ("checkpoint", ANY, "validation", ANY, "checkpoint", "end of a stage", ANY, "evaluation")
# Keys of lines and results that say how long something took, and how much memory.
TIMES = ("tokens_per_s", "images_per_s", "data_time_percent", "tflop_per_s", "mfu_percent", "peak_memory_gib", "eta_s")
TIMES += ("seconds",)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", default="configs/benchmarks/mini_kills.py")
    parser.add_argument("--kills", type=int, default=20, help="by SIGKILL")
    parser.add_argument("--terms", type=float, default=0.2, help="of all signals, the share that is SIGTERM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--reference", type=Path, help="the work dir of a finished run of the same config, not to make it"
    )
    parser.add_argument("--out", type=Path, help="of the .json and .md, without suffix")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="as of tools/train.py")
    return parser.parse_args()


@dataclass
class Attempt:
    """One process. signal: that ended it, or None; phase: where that was; code: its exit code."""

    signal: signal.Signals | None
    phase: str
    code: int
    seconds: float


class Process:
    """A training command that runs, and what can be seen of it from outside."""

    def __init__(self, command: list[str], work_dir: Path):
        self.work_dir, self.output = work_dir, work_dir.with_suffix(".out")
        self.begin, self.began, self.done = time.perf_counter(), time.time(), self._done()
        with open(self.output, "w", encoding="utf-8") as out:
            self.process = subprocess.Popen(
                [*command, "--work-dir", str(work_dir)],
                cwd=ROOT,
                env=dict(os.environ, OMP_NUM_THREADS="1"),
                stdout=out,
                stderr=out,
            )

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begin

    def phase(self) -> str:
        """checkpoint, preparation, training, validation, evaluation, end of a stage, end, or start."""
        if any(_written_since(folder, self.began) for folder in self.work_dir.glob("*/checkpoints/.*")):
            return "checkpoint"
        text = self.output.read_text(errors="replace", encoding="utf-8")
        last = {name: max((m.start() for m in re.finditer(mark, text)), default=-1) for name, mark in MARKS.items()}
        name = max(last, key=last.get) if max(last.values()) >= 0 else "start"
        if name == "training" and self._done() > self.done:
            return "end of a stage"
        begun = re.findall(BEGUN, text)
        unfinished = begun and not (self.work_dir / begun[-1] / "done.json").is_file()
        return "validation" if name == "evaluation" and unfinished else name

    def _done(self) -> int:
        return len(list(self.work_dir.glob("*/done.json")))

    def run(self, aim: str, deadline: float, delay: float, number: signal.Signals) -> Attempt:
        """Send the signal ``delay`` seconds after the process is where ``aim`` says, or after ``deadline`` seconds."""
        while self.process.poll() is None and self.seconds < deadline:
            if aim != ANY and self.phase() == aim:
                time.sleep(delay)
                break
            time.sleep(POLL)
        phase, sent = self.phase(), self.process.poll() is None
        if sent:
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE if sent else None)
        # What a killed process leaves tells more than what was seen just before.
        phase = self.phase() if sent and number == signal.SIGKILL else phase
        return Attempt(number if sent and code != 0 else None, phase, code, self.seconds)


def _written_since(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime >= moment
    except OSError:  # it has just got its name
        return False


def outcome(work_dir: Path) -> dict:
    """All that must be the same."""
    last = [sorted(folder.glob("step_*"))[-1] for folder in sorted(work_dir.glob("*/checkpoints"))]
    folders = [*last, *work_dir.glob("*/best"), *work_dir.glob("tokenizers/*")]
    files = [file for folder in folders for file in folder.rglob("*.safetensors")]
    for pattern in ("*/answers.jsonl", "text_tokenizer/*", "tokenizers/*/*.json"):
        files += work_dir.glob(pattern)
    found = {str(file.relative_to(work_dir)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    for name in ("metrics.jsonl", "validation.jsonl"):
        lines = (work_dir / name).read_text(encoding="utf-8").splitlines() if (work_dir / name).is_file() else []
        found[name] = [_timeless(json.loads(line)) for line in lines]
    for file in [work_dir / "results.json", *work_dir.glob("*/done.json")]:
        found[str(file.relative_to(work_dir))] = _timeless(json.loads(file.read_text(encoding="utf-8")))
    return found


def _timeless(value):
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES}
    return value


def differences(one: dict, other: dict) -> list[str]:
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def expected(attempt: Attempt) -> bool:
    """Whether a process ended as its signal asks. At its start Python does not yet listen."""
    if attempt.signal is None:
        return attempt.code == 0
    if attempt.signal == signal.SIGKILL:
        return attempt.code == -signal.SIGKILL
    return attempt.code == EXIT_CODE or (attempt.phase == "start" and attempt.code == -signal.SIGTERM)


def main() -> None:
    args = parse_args()
    require_positive(dict(kills=args.kills))
    from asvr.profiling.machine import in_words, machine
    from asvr.profiling.report import save
    from asvr.recipe.build import build_device

    command = [sys.executable, str(ROOT / "tools/train.py"), args.config]
    command += ["--cfg-options", *args.cfg_options] if args.cfg_options else []
    root, generator, begin = Path(tempfile.mkdtemp(prefix="kills_")), random.Random(args.seed), time.perf_counter()
    whole = Process(command, args.reference or root / "whole").run(ANY, float("inf"), 0.0, signal.SIGKILL)
    require(whole.code == 0, f"the untouched run failed with {whole.code}: {root / 'whole.out'}")
    reference = outcome(args.reference or root / "whole")
    counts = {number: Counter() for number in (signal.SIGKILL, signal.SIGTERM)}
    rounds, attempts, aims = 0, 0, cycle(AIMS)
    while counts[signal.SIGKILL].total() < args.kills:
        work_dir, finished = root / f"killed_{rounds}", False
        while not finished:
            enough = counts[signal.SIGKILL].total() >= args.kills
            number = signal.SIGTERM if generator.random() < args.terms else signal.SIGKILL
            aim = ANY if enough else next(aims) if work_dir.is_dir() else "preparation"
            deadline = generator.uniform(0, whole.seconds) if aim == ANY and not enough else float("inf")
            attempt = Process(command, work_dir).run(aim, deadline, generator.uniform(0, 0.02), number)
            require(
                expected(attempt), f"{attempt}: not the end that the signal asks for: {work_dir.with_suffix('.out')}"
            )
            attempts, finished = attempts + 1, attempt.signal is None
            if not finished:
                counts[attempt.signal][attempt.phase] += 1
                told = f"{counts[attempt.signal].total()} {attempt.signal.name}, in {attempt.phase}"
                print(f"{told}, after {attempt.seconds:.1f} s; {time.perf_counter() - begin:.0f} s", flush=True)
        rounds += 1
        different = differences(reference, outcome(work_dir))
        require(not different, f"{work_dir} ends otherwise than the untouched run: {', '.join(different)}")
        print(f"run {rounds} is finished and the same", flush=True)
    shutil.rmtree(root)
    found = machine(build_device("cpu"))
    by_signal = {number.name: dict(sorted(counter.items())) for number, counter in counts.items()}
    result = dict(machine=found, config=args.config, seed=args.seed, rounds=rounds, processes=attempts, **by_signal)
    result |= dict(compared=len(reference), differences=0, seconds=round(time.perf_counter() - begin))
    save(args.out, result, in_text(result, in_words(found)))


def in_text(result: dict, machine: str) -> str:
    lines = [f"{machine}; {result['config']}, seed {result['seed']}", ""]
    for name in ("SIGKILL", "SIGTERM"):
        where = ", ".join(f"{count} in {phase}" for phase, count in result[name].items())
        lines.append(f"- {name}: {sum(result[name].values())} ({where})")
    lines += [
        f"- {result['rounds']} runs in {result['processes']} processes and {result['seconds']} s",
        f"- {result['compared']} files of each run compared with those of an untouched run: no difference",
    ]
    return "\n".join(lines) + "\n"


def require(holds: bool, message: str) -> None:
    if not holds:
        sys.exit(f"error: {message}")


if __name__ == "__main__":
    run_tool(main)
