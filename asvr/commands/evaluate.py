"""Evaluate a trained model: questions with known answers, or public benchmarks.

MODEL is a config that was trained, the work dir of a run, or a saved model. Without other options, the model is asked
the questions of the config's evaluation data. With --questions FILE, it is asked the questions of FILE: LLaVA-format
JSON or JSONL, with the expected answer as the last turn. With --tasks, tasks of lmms-eval are run, or your own tasks
(--include-path). `paper` means the fourteen tasks of the ASVR paper.

examples:
  asvr evaluate asvr_mini
  asvr evaluate work_dirs/asvr_mini --questions my_questions.json --image-folder my_images
  asvr evaluate models/mine --tasks mme,pope
"""

import argparse
import os
import sys
from pathlib import Path

from asvr.base.recipes import find_recipe
from asvr.commands.cli import (
    CONFIGS,
    add_cfg_options,
    add_trust,
    new_parser,
    parse_cfg_options,
    refuse_options,
    require_file,
    require_folder,
    require_positive,
)


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = new_parser(prog, __doc__)
    model = parser.add_argument("model", type=Path, metavar="MODEL", help="a config, a work dir, or a saved model")
    model.complete = CONFIGS
    parser.add_argument("--work-dir", type=Path, help="the work dir of a config (default: work_dirs/<config name>)")
    parser.add_argument("--stage", help="the stage of a run whose model answers (default: the last)")
    parser.add_argument("--limit", type=int, help="ask only this many questions (of each task), the first ones")
    parser.add_argument(
        "--out",
        type=Path,
        help="the folder for results (default: in the model's folder, evaluation[/QUESTIONS' name] or "
        "benchmarks[/STAGE])",
    )
    asked = parser.add_argument_group("questions")
    asked.add_argument("--questions", type=Path, help="a file of questions, LLaVA-format JSON or JSONL")
    asked.add_argument(
        "--image-folder", type=Path, help="the folder of the images of --questions (default: the current one)"
    )
    add_trust(asked)
    add_cfg_options(asked)
    tasks = parser.add_argument_group("benchmarks")
    tasks.add_argument("--tasks", help="tasks of lmms-eval, separated by commas, or `paper`")
    tasks.add_argument("--batch-size", type=int, help="questions that are answered at once (default: 1)")
    tasks.add_argument("--device", help="cpu, cuda, cuda:0, or auto (default)")
    tasks.add_argument("--include-path", type=Path, action="append", help="a folder with tasks of your own; repeatable")
    tasks.add_argument("--skip-missing", action="store_true", help="skip tasks whose data are not on this machine")
    return parser


def model_or_config(given: Path) -> Path:
    """The given path, or the file of the recipe with this name if there is no such path."""
    recipe = None if given.exists() else find_recipe(given)
    return given if recipe is None else recipe


def check_args(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for an option that cannot be used with the others."""
    for_tasks = dict(batch_size=args.batch_size, device=args.device, include_path=args.include_path)
    for_questions = dict(questions=args.questions, image_folder=args.image_folder, cfg_options=args.cfg_options)
    for_questions |= dict(trust_custom_imports=args.trust_custom_imports)
    wrong = for_questions if args.tasks is not None else for_tasks | dict(skip_missing=args.skip_missing)
    what = "--tasks" if args.tasks is not None else "questions (without --tasks)"
    refuse_options(wrong, f"does not go with {what}")
    if args.tasks is None and args.questions is None:
        refuse_options(dict(image_folder=args.image_folder), "can only be used with --questions")
    if args.model.suffix != ".py":
        refuse_options(
            dict(work_dir=args.work_dir, cfg_options=args.cfg_options), "can only be used with a config, not a folder"
        )
    require_file(dict(questions=args.questions))
    require_folder(dict(image_folder=args.image_folder))
    require_positive(dict(limit=args.limit, batch_size=args.batch_size))


def answer_questions(args: argparse.Namespace) -> None:
    from asvr.benchmarks.questions import evaluate_folder, evaluate_run
    from asvr.recipe.config import load_config  # here: --help need not wait for torch

    asked = dict(stage=args.stage, questions=args.questions, image_folder=args.image_folder or Path())
    asked |= dict(limit=args.limit, out=args.out)
    if args.model.suffix == ".py":
        cfg = load_config(args.model, parse_cfg_options(args.cfg_options))
        evaluate_run(cfg, args.work_dir or Path("work_dirs") / args.model.stem, **asked)
    else:
        evaluate_folder(args.model, trust_custom_imports=args.trust_custom_imports, **asked)


def run_tasks(args: argparse.Namespace) -> None:
    if os.environ.get("ASVR_DOWNLOAD") != "1":  # data on this machine are read without the network, as models are
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from asvr.benchmarks.report import markdown
    from asvr.benchmarks.run import run_benchmarks
    from asvr.recipe.config import load_config

    folder = args.model
    if args.model.suffix == ".py":
        load_config(args.model)  # raises an error if it is not a config
        folder = args.work_dir or Path("work_dirs") / args.model.stem
    result = run_benchmarks(
        folder,
        [name.strip() for name in args.tasks.split(",") if name.strip()],
        stage=args.stage,
        batch_size=args.batch_size or 1,
        limit=args.limit,
        include_paths=args.include_path or [],
        device=args.device or "auto",
        skip_missing=args.skip_missing,
        out=args.out,
    )
    print(markdown(result, notes=False))
    if result["failed"]:
        sys.exit(f"{len(result['failed'])} task(s) failed; run the same command to try them again")


def main() -> None:
    args = parser().parse_args()
    args.model = model_or_config(args.model)
    check_args(args)
    answer_questions(args) if args.tasks is None else run_tasks(args)
