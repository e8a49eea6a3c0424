"""Open a web page to look at a model: python tools/demo.py FOLDER"""

from asvr.commands.cli import run_tool
from asvr.commands.demo import main

if __name__ == "__main__":
    run_tool(main)
