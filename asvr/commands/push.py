"""Upload a model to the Hugging Face Hub.

FOLDER is the work dir of a finished run, a saved model, or a folder of `asvr convert export`. A model card (README.md)
is made from the run. A card that you wrote yourself is only replaced if you ask for it. First log in with
`hf auth login`, or set HF_TOKEN.

examples:
  asvr push work_dirs/asvr_mini my-org/my-model --license apache-2.0
  asvr push exported my-org/my-model-llava --private
"""

import argparse
from pathlib import Path

from asvr.commands.cli import add_trust, refuse_options


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog, allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a work dir, a saved model, or an exported model")
    parser.add_argument("repo_id", metavar="ORG/NAME", help="the model on the Hub; it is created if it does not exist")
    parser.add_argument("--private", action="store_true", help="if the model is created, make it private")
    parser.add_argument(
        "--revision", help="the branch to upload to; it is created if it does not exist (default: main)"
    )
    parser.add_argument("--create-pr", action="store_true", help="open a pull request in place of a commit")
    parser.add_argument("--commit-message", help="the first line of the commit message")
    parser.add_argument("--license", help="for the model card, as the Hub names it: apache-2.0, mit, ..., or other")
    parser.add_argument("--license-name", help="the name of the license, with --license other")
    parser.add_argument("--license-link", help="a link to the license, with --license other")
    parser.add_argument("--overwrite-card", action="store_true", help="replace a model card on the Hub that you edited")
    of_run = parser.add_argument_group("work dir of a run")
    of_run.add_argument("--stage", help="the stage to upload (default: the last)")
    add_trust(of_run)
    return parser


def main() -> None:
    args = parser().parse_args()
    if not args.folder.is_dir():
        raise ValueError(f"{args.folder}: there is no such folder")
    terms = dict(license=args.license, license_name=args.license_name, license_link=args.license_link)
    where = dict(
        private=True if args.private else None,
        revision=args.revision,
        create_pr=args.create_pr,
        commit_message=args.commit_message,
        overwrite_card=args.overwrite_card,
    )
    if (args.folder / "asvr.json").is_file() or (args.folder / "config.json").is_file():
        refuse_options(
            dict(stage=args.stage, trust_custom_imports=args.trust_custom_imports),
            "can only be used with a run's work dir: this folder is uploaded as it is",
        )
        from asvr.sharing.card import License
        from asvr.sharing.push import push_folder  # here: --help need not wait for torch

        stated = License(**terms) if any(terms.values()) else None
        info = push_folder(args.folder, args.repo_id, terms=stated, **where)
    else:
        import asvr

        model = asvr.load(args.folder, device="cpu", stage=args.stage, trust_custom_imports=args.trust_custom_imports)
        info = model.push_to_hub(args.repo_id, **terms, **where)
    print(info.pr_url or info.commit_url)
