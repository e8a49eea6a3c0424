"""Chat with a model about images, in the terminal.

FOLDER is a saved model, or the work dir of a finished run. A line is a question, or a command:

/image PATH   show an image; several images before one question are shown together
/map [FILE]   save a map of the last image: where the visual head is right, and how certain (default: token_map.png)
/clear        forget all images and questions so far
/quit         end (or Ctrl-D)

example:
  asvr chat work_dirs/asvr_mini
"""

import argparse
import sys
from pathlib import Path

from asvr.commands.cli import add_talker, new_parser


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = new_parser(prog, __doc__)
    add_talker(parser)
    return parser


def answer(conversation, line: str) -> None:
    """Do what a line says. If it is wrong, print an error and go on."""
    from asvr.demo.maps import as_seen
    from asvr.evaluation.drawing import draw_targets

    command, _, rest = line.partition(" ")
    rest = rest.strip()
    try:
        if command == "/image" and not rest:
            print("/image: expected /image PATH")
        elif command == "/image":
            image = conversation.show(rest)
            print(f"{rest}: {image.width} x {image.height} pixels")
        elif command == "/map":
            file = Path(rest or "token_map.png")
            maps = conversation.token_maps()
            if not maps:
                raise ValueError("the targets of this model have no map to show")
            draw_targets(as_seen(conversation.pretrained, conversation.images[-1]), maps).savefig(file)
            print(f"written: {file}")
        elif command == "/clear":
            conversation.clear()
        elif command.startswith("/"):
            print(f"{command}: unknown; expected /image PATH, /map [FILE], /clear or /quit")
        else:
            print("" if conversation.ask(line, lambda text: print(text, end="", flush=True)) else "(no answer)")
    except (ValueError, OSError) as error:
        print(f"error: {error}")


def main() -> None:
    args = parser().parse_args()
    import asvr  # here: --help need not wait for torch
    from asvr.demo.chat import Conversation

    own = dict(device=args.device, stage=args.stage, trust_custom_imports=args.trust_custom_imports)
    pretrained = asvr.load(args.folder, **own)
    conversation = Conversation(pretrained, max_new_tokens=args.max_new_tokens)
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line:
            answer(conversation, line)
