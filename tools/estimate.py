"""Plan a training run: python tools/estimate.py configs/asvr_vicuna7b.py [--plan 8x8]"""

from asvr.commands.cli import run_tool
from asvr.commands.plan import main

if __name__ == "__main__":
    run_tool(main)
