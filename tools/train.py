"""Train a config: python tools/train.py configs/asvr_mini.py"""

from asvr.commands.cli import run_tool
from asvr.commands.train import main

if __name__ == "__main__":
    run_tool(main)
