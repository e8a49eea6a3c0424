"""Evaluate a trained model: python tools/eval.py MODEL"""

from asvr.commands.cli import run_tool
from asvr.commands.evaluate import main

if __name__ == "__main__":
    run_tool(main)
