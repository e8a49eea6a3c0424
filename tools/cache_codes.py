"""Compute the target codes of a config's images before training: python tools/cache_codes.py CONFIG --out DIR"""

from asvr.commands.cache_codes import main
from asvr.commands.cli import run_tool

if __name__ == "__main__":
    run_tool(main)
