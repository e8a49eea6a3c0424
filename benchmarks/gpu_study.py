"""A study on one GPU within a limit of time: several runs at once, complete seeds first.

python benchmarks/gpu_study.py --seconds 540 --out DIR
python benchmarks/gpu_study.py --seconds 120 --out DIR --device cpu        the same at tiny sizes, to try it

Every run is a process of its own. All arms of a seed run before the next seed. Until a run has ended, only the first
seed's runs are begun; from then on a seed is begun only if it can end before the limit, by the seconds of the runs
that have ended. DIR gets the results and answers of each run as it ends, and the study's report after each complete
seed. The last line that is printed is ``FIGURES`` and a JSON object. A run that fails is told, and the others go on.
The weights of a run are removed when it has ended. Exit code: 0 no run failed and the report has a
complete seed, 143 ended by SIGTERM, else 1.

`asvr study STUDY --out DIR --report` writes the report again from DIR.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from gpu_study_schedule import FAILED, Schedule, say

from asvr.base.text import nearest
from asvr.commands.cli import require_positive, run_tool

RESERVE = 12.0  # seconds, to end the runs that are under way, for the report, and to remove the weights
GIB_OF_A_RUN = 20  # of configs/studies/_base_smollm2.py: the memory plan says 18.0e9 bytes, and CUDA's own
CACHED = "cache/*/index.json"  # it is there when the features of all images are


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", nargs="?", default="studies/smollm2", help="its file or name (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=540, help="for everything (default: 540)")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument("--work", type=Path, help="a folder for weights and caches (default: a temporary one)")
    parser.add_argument("--llm", type=Path, help="a folder with an LLM and its tokenizer, in place of the study's")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="only these; the baseline is one of them")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="in place of the study's")
    parser.add_argument("--jobs", type=int, help="runs at the same time (default: by free memory and cores)")
    return parser.parse_args()


def runs_at_once(device: str, arms: int) -> int:
    """By free memory and cores: a run has two processes. More than two seeds at once would all end late."""
    cores = max(1, (os.cpu_count() or 1) // 2)
    if device == "cpu":
        return cores
    import torch

    if not torch.cuda.is_available():
        sys.exit("error: torch finds no CUDA device: use --device cpu to try this at tiny sizes")
    free, _ = torch.cuda.mem_get_info()
    return max(1, min(2 * arms, cores, int(free / 2**30 / GIB_OF_A_RUN)))


def chosen_study(args: argparse.Namespace) -> tuple:
    """The study with the arms and seeds of the options, and its name."""
    from asvr.studies.study_fields import OWN_SEEDS
    from asvr.studies.study_file import load_study

    study = load_study(args.study)
    if study.shared or study.tokenizers:
        sys.exit(
            f"error: {args.study}: it has `shared` or `tokenizers`, which are not trained here: use asvr study, or a "
            "study without them"
        )
    if args.arms:
        if unknown := [arm for arm in args.arms if arm not in study.arms]:
            sys.exit(f"error: --arms: no arm {unknown[0]!r}; {nearest(unknown[0], list(study.arms))}")
        if study.baseline not in args.arms:
            sys.exit(f"error: --arms: expected the baseline {study.baseline!r} among them")
        study.arms = {arm: own for arm, own in study.arms.items() if arm in args.arms}
        for name in ("decides", "compare"):
            study[name] = [pair for pair in study.get(name, []) if set(pair) <= set(args.arms)]
    if args.seeds:
        if len(set(args.seeds)) != len(args.seeds):
            sys.exit(f"error: --seeds {' '.join(map(str, args.seeds))}: expected different numbers")
        study.seeds = args.seeds
        for arm, own in study.arms.items():
            if OWN_SEEDS in own:
                own[OWN_SEEDS] = [seed for seed in own[OWN_SEEDS] if seed in args.seeds]
                if not own[OWN_SEEDS]:
                    sys.exit(f"error: --seeds: the arm {arm!r} has none of these seeds: leave it out with --arms")
    return study, Path(args.study).stem


def run(args: argparse.Namespace, deadline: float, work: Path) -> int:
    """The exit code."""
    from gpu_study_results import Results
    from gpu_study_setup import jobs_of, llm_of

    study, name = chosen_study(args)
    at_once = args.jobs or runs_at_once(args.device, len(study.arms))
    llm = llm_of(study, args.llm, work, args.device)
    results = Results(study, name, args.out, jobs_of(study, work, llm=llm, device=args.device))
    say(f"{len(results.jobs)} runs, {at_once} at once, from {llm}")
    schedule = Schedule(
        results.jobs,
        at_once=at_once,
        deadline=deadline,
        ready=lambda: any(work.glob(CACHED)),  # else each run would compute the features
        ended=results.keep,
    )
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: setattr(schedule, "stopped", "ended by a signal"))
    schedule.go()
    results.report()
    results.tell()
    if schedule.stopped:
        return 128 + signal.SIGTERM
    broken = results.problem is not None or any(job.state == FAILED for job in results.jobs)
    return int(broken or not results.complete)


def main() -> None:
    deadline = time.monotonic() - RESERVE  # now: the imports of `run` take seconds
    args = parse_args()
    require_positive(dict(jobs=args.jobs, seconds=args.seconds))
    if args.out.is_dir() and any(args.out.iterdir()):
        sys.exit(f"error: --out {args.out}: expected a new or an empty folder")
    args.out.mkdir(parents=True, exist_ok=True)
    work = args.work or Path(tempfile.mkdtemp(prefix="asvr_gpu_study_"))
    try:
        code = run(args, deadline + args.seconds, work.absolute())
    finally:
        if args.work is None:
            shutil.rmtree(work, ignore_errors=True)
    sys.exit(code)


if __name__ == "__main__":
    run_tool(main)
