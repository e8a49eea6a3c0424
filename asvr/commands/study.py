"""Run a study: train every arm with every seed, or with its own, and compare them.

examples:
  asvr study targets_mini
  asvr study my_study.py --jobs 2
  asvr study my_study.py --arms none mine
  asvr study my_study.py --report
  asvr study my_study.py --probes
"""

import argparse
import sys
from pathlib import Path

from asvr.base.allocator import keep_freed_memory
from asvr.base.text import nearest
from asvr.commands.cli import CONFIGS, new_parser, refuse_options, require_file, require_folder, require_positive


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = new_parser(prog, __doc__)
    parser.add_argument("study", help="a study's file, or its name (asvr list recipes studies)").complete = CONFIGS
    parser.add_argument("--out", type=Path, help="the folder for all runs (default: work_dirs/<name of the study>)")
    parser.add_argument(
        "--jobs", type=int, help="the number of runs that train at the same time; they share the cores (default: 1)"
    )
    parser.add_argument(
        "--arms", nargs="+", metavar="ARM", help="train only these arms; the report is of all finished runs"
    )
    parser.add_argument("--report", action="store_true", help="do not train; write the report of finished runs")
    parser.add_argument(
        "--questions", type=Path, help="more questions for all finished runs, LLaVA-format JSON or JSONL"
    )
    parser.add_argument(
        "--image-folder", type=Path, help="the folder of the images of --questions (default: the current one)"
    )
    parser.add_argument(
        "--probes",
        action="store_true",
        help="do not train; measure which facts of a scene each layer of the finished runs holds (Scenes only)",
    )
    parser.add_argument("--scenes", type=int, help="the number of scenes for --probes (default: 1500)")
    return parser


REPORT = ("report.md", "report.json", "radar.png", "bars.png", "curves.png")
PROBES = ("probes.md", "probes.json", "probes.png")


def written(folder: Path, names: tuple[str, ...] = REPORT) -> str:
    return f"written: {folder}/{', '.join(name for name in names if (folder / name).is_file())}"


def _check_options(args: argparse.Namespace) -> None:
    require_positive(dict(jobs=args.jobs, scenes=args.scenes))
    require_file(dict(questions=args.questions))
    require_folder(dict(image_folder=args.image_folder))
    if args.probes:
        others = dict(
            jobs=args.jobs, arms=args.arms, report=args.report, questions=args.questions, image_folder=args.image_folder
        )
        refuse_options(others, "cannot be used with --probes")
    else:
        refuse_options(dict(scenes=args.scenes), "needs --probes")
    if args.report:
        refuse_options(
            dict(jobs=args.jobs, arms=args.arms, image_folder=args.image_folder), "cannot be used with --report"
        )
    if args.arms:
        refuse_options(dict(questions=args.questions), "cannot be used with --arms: --questions asks all runs")
    if args.questions is None:
        refuse_options(dict(image_folder=args.image_folder), "needs --questions")


def main() -> None:
    args = parser().parse_args()
    _check_options(args)
    keep_freed_memory()
    from asvr.base.log import set_up_logging  # here: --help need not wait for torch
    from asvr.studies.comparison import asked_groups
    from asvr.studies.report import write_report
    from asvr.studies.results import collect, collect_finished, require_begun, runs
    from asvr.studies.run import ask_all, run_study
    from asvr.studies.shared import starts
    from asvr.studies.study_file import load_study

    study, name = load_study(args.study), Path(args.study).stem
    if unknown := [arm for arm in args.arms or [] if arm not in study.arms]:
        raise ValueError(f"--arms: {args.study} has no arm {unknown[0]!r}; {nearest(unknown[0], list(study.arms))}")
    out = args.out or Path("work_dirs") / name
    if args.report or args.probes:
        require_begun(study, out, "--report" if args.report else "--probes")
    set_up_logging(out / "study.log")
    if args.probes:
        return _probe(study, out, name, args.scenes)
    failed = [] if args.report else run_study(study, out, jobs=args.jobs or 1, arms=args.arms)
    if failed:
        report = "give --report in place of --arms" if args.arms else "add --report"
        again = (
            f"run the same command to try them again. If you change an arm, remove its folder in {out}, or use "
            f"another --out. For a report of the finished runs, {report}"
        )
        sys.exit("\n".join([f"{len(failed)} run(s) failed; {again}:", *failed]))

    if args.arms and not any(run.arm == study.baseline and run.finished for run in runs(study, out)):
        print(f"{out}: no report yet: it needs a finished run of the baseline {study.baseline!r}")
        return

    def read(questions: Path | None = None) -> tuple[dict, list[str]]:
        return (
            collect_finished(study, out, questions=questions)
            if args.report or args.arms
            else (collect(study, out, questions=questions), [])
        )

    begun = starts(study, out)
    found, missing = read()
    print(write_report(study, found, out, name=name, missing=missing, starts=begun))
    print(written(out))
    if args.questions is not None:
        if not args.report:
            ask_all(study, out, questions=args.questions, image_folder=args.image_folder or Path())
        found, missing = read(args.questions)
        there, title = out / "questions" / args.questions.stem, f"{name}, questions of {args.questions.name}"
        print(write_report(asked_groups(study, found), found, there, name=title, missing=missing, starts=begun))
        print(written(there))


def _probe(study, out: Path, name: str, scenes: int | None) -> None:
    from asvr.studies.probe_report import write_probe_report
    from asvr.studies.probe_runs import DEFAULT_SCENES, probe_study

    scenes = scenes or DEFAULT_SCENES
    found, missing = probe_study(study, out, scenes=scenes)
    print(write_probe_report(study, found, out, name=name, scenes=scenes, missing=missing))
    print(written(out, PROBES))
