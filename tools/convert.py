"""Import weights, export a model, or show a checkpoint: python tools/convert.py show|import|export ..."""

from asvr.commands.cli import run_tool
from asvr.commands.convert import main

if __name__ == "__main__":
    run_tool(main)
