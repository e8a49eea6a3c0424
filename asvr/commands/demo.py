"""Open a web page to look at a model.

FOLDER is a saved model, or the work dir of a finished run. Choose an image and ask a question about it. Besides the
answer, the page shows where the visual heads are right, how certain they are, and what the answer looks at. If a target
can decode its codes, it also shows the pixels of the predicted codes. With --against, a second model gets the same
images and questions, and the page shows both side by side. docs/guides/demo.md explains the maps. The command needs:
pip install 'asvr[demo]'

example:
  asvr demo work_dirs/asvr_mini
"""

import argparse
import os
from pathlib import Path

from asvr.commands.cli import add_talker, new_parser

LOOPBACK = "127.0.0.1"


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = new_parser(prog, __doc__)
    add_talker(parser)
    parser.add_argument("--port", type=int, default=7860, help="the port of the page (default: 7860)")
    parser.add_argument(
        "--host",
        default=LOOPBACK,
        help="the address of the page (default: only for this machine); with another address, others can open it",
    )
    parser.add_argument("--against", metavar="FOLDER", help="a second model, shown beside the first")
    parser.add_argument("--against-stage", metavar="STAGE", help="the stage of the second model (default: the last)")
    parser.add_argument(
        "--examples",
        type=Path,
        metavar="FOLDER_OR_JSON",
        help="images and questions to choose from: a folder of images, or a JSON list of records with image, question "
        "and, if you like, answer (default: from the evaluation data of the run)",
    )
    return parser


def model_names(folders: list[str], stages: list[str | None]) -> list[str]:
    """Short names of the models: the folder, with the stage if one was chosen, and with the parent folder if needed."""
    paths = [Path(folder).absolute() for folder in folders]
    for names in ([path.name for path in paths], [f"{path.parent.name}/{path.name}" for path in paths]):
        named = [f"{name} ({stage})" if stage else name for name, stage in zip(names, stages, strict=True)]
        if len(set(named)) == len(named):
            return named
    return [f"{name} [{letter}]" for name, letter in zip(named, "AB", strict=False)]


def main() -> None:
    args = parser().parse_args()
    if args.against_stage and not args.against:
        raise ValueError("--against-stage chooses a stage of the second model: give --against FOLDER, too")
    # Nothing is sent to anybody. This must be set before gradio is imported, which imports huggingface_hub.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    import asvr  # here: --help need not wait for torch
    from asvr.demo.examples import examples_of_run, read_examples
    from asvr.demo.page import serve
    from asvr.demo.session import Demo

    chosen = [(args.folder, args.stage), *([(args.against, args.against_stage)] if args.against else [])]
    folders, stages = map(list, zip(*chosen, strict=True))
    own = dict(device=args.device, trust_custom_imports=args.trust_custom_imports)
    models = [asvr.load(folder, stage=stage, **own) for folder, stage in chosen]
    named = zip(models, model_names(folders, stages), strict=True)
    demos = [Demo(model, name=name, max_new_tokens=args.max_new_tokens) for model, name in named]
    examples = read_examples(args.examples) if args.examples else examples_of_run(Path(args.folder), args.stage)
    if args.host != LOOPBACK:
        print(f"warning: anyone who can reach {args.host}:{args.port} can use this page; it has no password")
    page = serve(demos, host=args.host, port=args.port, examples=examples)
    print(f"the page is at {page.local_url} (Ctrl-C ends it)", flush=True)
    page.block_thread()
