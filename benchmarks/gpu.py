"""Everything that only a GPU can show, in order of worth, within a limit of time.

python benchmarks/gpu.py --seconds 540 --out DIR [--wheels DIR]
python benchmarks/gpu.py --seconds 120 --out DIR --device cpu        the same at tiny sizes, to try it
python benchmarks/gpu.py --seconds 540 --out DIR --wheels DIR --parts study      one part alone

Each part is a process of its own with its own limit. DIR gets a line of JSON as each one ends (parts.jsonl), a report
for people that is written anew each time (report.md), and what the parts printed (output.log). A part that fails, is
cut off or does not fit is listed with the reason, and the others go on. SIGTERM ends the part that runs and writes the
report. Exit code: 0 nothing failed, 1 something failed or was cut off or no part passed, 143 ended by SIGTERM.

What the parts need beside torch, transformers and timm is taken from the wheels in --wheels, see benchmarks/README.md.
Only the standard library is needed to begin.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu_figures import own_figures, read
from gpu_list import ENCODER, LLM, OPTIONAL, REQUIRED, ROOT, STUDY, Part, end_with_parent, parts_of
from gpu_wheels import find_wheels

POLL, GRACE, RESERVE = 0.1, 5.0, 8.0  # seconds: between looks, from SIGTERM to SIGKILL, for the report at the end
MARGIN = 4.0  # seconds by which a part that is told its limit ends before it
LAST_LINES = 15
SIDE_BY_SIDE = 8  # cores from which the parts that measure no time run together


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=540, help="for everything (default: 540)")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument(
        "--wheels", type=Path, help="a folder with wheels of what this machine's Python lacks, also in parts"
    )
    parser.add_argument("--llm", type=Path, help="a folder with the LLM of the part `study`, in place of a wheel's")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="only these, of the names in the report")
    return parser.parse_args()


class Session:
    """Runs parts until the time is over or SIGTERM comes, and writes down what they gave."""

    def __init__(self, args: argparse.Namespace, work: Path):
        self.args, self.out, self.work = args, args.out, work
        self.deadline = time.monotonic() + args.seconds - RESERVE
        self.parts: list[Part] = []
        self.machine: dict = dict(packages={}, problems={})
        self.ended = False  # by SIGTERM
        path = [str(work / "site"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.env = os.environ | dict(PYTHONPATH=os.pathsep.join(path), PYTHONUNBUFFERED="1", HF_HUB_OFFLINE="1")

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, parts: list[Part], later: float = 0.0) -> None:
        """At the same time. later: seconds that are to be left for what comes behind them."""
        under_way: dict[int, tuple] = {}
        for part in parts:
            left = self.left
            limit = min(part.most, max(part.least, left - later))
            if part.why_not is None and self.ended:
                part.why_not = "ended by SIGTERM before its turn"
            if part.why_not is None and limit > left:
                part.why_not = f"{max(0, left):.0f} s were left, it needs {part.least:.0f} s or more"
            if part.why_not is not None:
                self._keep(part, "not run", reason=part.why_not)
                continue
            log = self.out / f"{part.name}.log"
            part.command += ["--seconds", f"{limit - MARGIN:.0f}"] if part.told else []
            command, own = [sys.executable, *part.command], dict(cwd=ROOT, env=self.env, preexec_fn=end_with_parent)
            with open(log, "w", encoding="utf-8") as stream:
                process = subprocess.Popen(
                    command, **own, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
                )
            part.state = "running"
            say(f"{part.name}: begins, at most {limit:.0f} s")
            under_way[id(part)] = (part, process, log, time.monotonic(), limit)
        self._report()
        while under_way:
            time.sleep(POLL)
            for key, (part, process, log, begin, limit) in list(under_way.items()):
                seconds = time.monotonic() - begin
                why = "ended by SIGTERM" if self.ended else f"its limit of {limit:.0f} s" if seconds > limit else None
                code = process.poll()
                if code is None and why is None:
                    continue
                if code is None:
                    stop(process)
                del under_way[key]
                cut = code is None or (self.ended and code != 0)  # a signal to a whole group ends both
                state = "cut off" if cut else "passed" if code == 0 else "failed"
                self._finish(part, state, log, seconds, code, why if cut else None)

    def _finish(self, part: Part, state: str, log: Path, seconds: float, code: int | None, why: str | None) -> None:
        text = read(log)
        try:
            figures = part.figures(text)
        except Exception as error:  # whatever a broken part has printed
            figures = dict(not_read=f"{type(error).__name__}: {error}")
        with open(self.out / "output.log", "a", encoding="utf-8") as stream:
            stream.write(f"===== {part.name}: {state}\n{text}\n")
        log.unlink()
        lines = [line.rpartition("\r")[2][:400] for line in text.splitlines() if line.strip()][-LAST_LINES:]
        self._keep(
            part, state, reason=why, seconds=round(seconds, 1), exit_code=code, figures=figures, last_lines=lines
        )

    def _keep(self, part: Part, state: str, **found) -> None:
        part.state = state
        part.result = dict(part=part.name, state=state, command=["python", *part.command]) | found
        write(self.out / "parts.jsonl", json.dumps(part.result) + "\n", "a")
        shown = json.dumps(found.get("figures") or found.get("reason") or found.get("exit_code"))
        say(f"{part.name}: {state}{f' after {seconds} s' if (seconds := found.get('seconds')) else ''}: {shown}")
        self._report()

    def _report(self) -> None:
        gpu = f"{self.machine['gpu']}, {self.machine['gib']} GiB" if "gpu" in self.machine else "no GPU"
        packages = ", ".join(f"{name} {version}" for name, version in self.machine["packages"].items())
        lines = [f"{gpu}; Python {self.machine.get('python', '?')}, {packages}", ""]
        lines += [f"not there: {name}: {why}" for name, why in self.machine["problems"].items()]
        lines += ["", "| part | what it shows | end | seconds |", "|---|---|---|---|"]
        for part in self.parts:
            end = f"{part.state}{f': {why}' if (why := part.result.get('reason')) else ''}"
            lines.append(f"| {part.name} | {part.shows} | {end} | {part.result.get('seconds', '')} |")
        for part in self.parts:
            lines += ["", f"## {part.name}", "", f"`python {' '.join(part.command)}`", ""]
            lines += [f"- {key}: {json.dumps(value)}" for key, value in (part.result.get("figures") or {}).items()]
            lines += ["", read(self.work / f"{part.name}.md") or read(self.out / part.name / "report.md")]
            if part.state in ("failed", "cut off"):
                lines += ["```", *part.result["last_lines"], "```"]
        write(self.out / "report.md", "\n".join(lines) + "\n", "w")

    def install(self) -> None:
        """The wheels, into a folder that the parts' Python looks into first; then, what there is."""
        (self.work / "site").mkdir()
        if self.args.wheels is not None:
            wheels = map(str, find_wheels(self.args.wheels, self.work / "joined"))
            pip = [
                "-m",
                "pip",
                "install",
                "--no-index",
                "--no-deps",
                "--no-compile",
                "--target",
                str(self.work / "site"),
            ]
            self.parts.append(Part("wheels", "the wheels of --wheels", [*pip, *wheels], 10, 120))
            self.run(self.parts[-1:])
            # Libraries of NVIDIA's wheels, such as CUDA 12's runtime for xformers: nobody else looks for them here.
            libraries = [str(folder) for folder in sorted((self.work / "site").glob("nvidia/*/lib"))]
            # FlashAttention-4 needs cutlass, whose wheel names its folder in a file that Python reads elsewhere only.
            folders = [str(folder) for folder in sorted((self.work / "site").glob("*/dsl_packages"))]
            self.env["PYTHONPATH"] = os.pathsep.join([*folders, self.env["PYTHONPATH"]])
            before = filter(None, [os.environ.get("LD_LIBRARY_PATH")])
            self.env["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, *before])
        probe = ["benchmarks/gpu_probe.py", str(self.work / "site"), *REQUIRED, *OPTIONAL, ENCODER, LLM]
        self.parts.append(Part("machine", "what this machine has", probe, 10, 120, own_figures))
        self.run(self.parts[-1:])
        self.machine |= self.parts[-1].result.get("figures") or {}
        if not self.machine["packages"] and not self.machine["problems"]:
            self.machine["problems"]["torch"] = "see the part `machine`"


def stop(process: subprocess.Popen) -> None:
    """SIGTERM, and a little later SIGKILL, to a process and all that descends from it, in whatever session."""
    family = [process.pid, *descendants(process.pid)]
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        for pid in {*family, *descendants(process.pid)}:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
        except (OSError, IndexError):  # it has just ended
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = list(children.get(pid, []))
    for one in found:
        found += children.get(one, [])
    return found


def reserved(left: float, group: list[Part], behind: list[Part]) -> float:
    """Seconds for the parts behind a group: those that have room beside the most that the group may take, in order."""
    room, found = left - max((part.most for part in group), default=0.0), 0.0
    for part in behind:
        if found + part.least > room:
            break
        found += part.least
    return found


def write(file: Path, text: str, mode: str) -> None:
    """So that it is there whenever the process or the machine ends."""
    with open(file, mode, encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    args = parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")
    args.out = args.out.resolve()  # parts have a directory of their own
    if (args.parts is None or STUDY in args.parts) and any((args.out / STUDY).glob("*")):
        print(f"error: {args.out / STUDY} has the results of another study: give another --out", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("parts.jsonl", "report.md", "output.log"):
        (args.out / name).unlink(missing_ok=True)
    work = Path(tempfile.mkdtemp(prefix="asvr_gpu_"))
    session = Session(args, work)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: setattr(session, "ended", True))
    try:
        try:
            session.install()
        except ValueError as error:  # of --wheels
            print(f"error: {error}", file=sys.stderr)
            return 2
        parts = parts_of(args.device, session.machine, work, args.out, args.llm and args.llm.resolve())
        names = [part.name for part in parts]
        if args.parts and (unknown := set(args.parts) - set(names)):
            print(f"error: --parts {' '.join(sorted(unknown))}: expected some of {' '.join(names)}", file=sys.stderr)
            return 2
        parts = [part for part in parts if not args.parts or part.name in args.parts]
        session.parts += parts
        together = [part for part in parts if not part.timed and (os.cpu_count() or 1) >= SIDE_BY_SIDE]
        groups = [together, *([part] for part in parts if part not in together)]
        for number, group in enumerate(groups):
            behind = [part for later in groups[number + 1 :] for part in later if part.why_not is None]
            session.run(group, later=reserved(session.left, group, behind))
        say(f"written: {args.out / 'report.md'}, parts.jsonl and output.log")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if session.ended:
        return 128 + signal.SIGTERM
    broken = any(part.state in ("failed", "cut off") for part in session.parts)
    return int(broken or not any(part.state == "passed" for part in parts))


if __name__ == "__main__":
    sys.exit(main())
