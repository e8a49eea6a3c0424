"""Chat with a model about images: python tools/chat.py FOLDER"""

from asvr.commands.chat import main
from asvr.commands.cli import run_tool

if __name__ == "__main__":
    run_tool(main)
