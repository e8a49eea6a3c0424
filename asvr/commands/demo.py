"""Open a web page to look at a model.

FOLDER is a saved model, or the work dir of a finished run. Show an image and ask about it. Beside the answer the page
shows where the visual heads are right and how sure they are, what the answer looks at, and, for a target that decodes,
the pixels of the predicted codes. Needs: pip install 'asvr[demo]'

example:
  asvr demo work_dirs/asvr_mini
"""

import argparse
import os

from asvr.commands.cli import add_talker, new_parser

LOOPBACK = "127.0.0.1"


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = new_parser(prog, __doc__)
    add_talker(parser)
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--host", default=LOOPBACK, help="default: this machine alone; any other lets others in")
    return parser


def main() -> None:
    args = parser().parse_args()
    # Before gradio is imported, which imports huggingface_hub: nothing is told to anybody.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    import asvr  # here: --help need not wait for torch
    from asvr.demo.page import serve
    from asvr.demo.session import Demo

    own = dict(device=args.device, stage=args.stage, trust_custom_imports=args.trust_custom_imports)
    pretrained = asvr.load(args.folder, **own)
    demo = Demo(pretrained, max_new_tokens=args.max_new_tokens)
    if args.host != LOOPBACK:
        print(f"warning: whoever reaches {args.host}:{args.port} can use this page; it asks for no password")
    page = serve(demo, host=args.host, port=args.port)
    print(f"the page is at {page.local_url} (Ctrl-C ends it)", flush=True)
    page.block_thread()
