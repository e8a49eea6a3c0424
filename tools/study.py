"""Train every arm of a study with every seed and compare them: python tools/study.py configs/studies/targets_mini.py"""

from asvr.commands.cli import run_tool
from asvr.commands.study import main

if __name__ == "__main__":
    run_tool(main)
