"""Fit or train the visual tokenizer of a config: python tools/train_tokenizer.py configs/tokenizers/NAME.py"""

from asvr.commands.cli import run_tool
from asvr.commands.train_tokenizer import main

if __name__ == "__main__":
    run_tool(main)
